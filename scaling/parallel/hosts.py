"""Many hosts: start-up of jax.distributed, what host 0 decides for all, preemption notices, lost hosts.

One process runs per host (or per GPU under SLURM). How many there are, and which one this is, is taken from the first of:
  flags or environment  SCALING_COORDINATOR=host:port, SCALING_HOSTS=n, SCALING_HOST=i; SCALING_HOSTS=1: this one alone
  SLURM                 a step of several tasks (srun)
  TPU pods              what the machine says of itself, read by jax

More of the environment: SCALING_START_SECONDS to wait for each other (300), SCALING_HEARTBEAT_SECONDS after which a
silent host counts as lost (100, as in jax), SCALING_COORDINATOR_BIND=address:port for host 0 to listen on.

All hosts must see the same files. jax is imported only where there are several hosts.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scaling.errors import UserError

START_SECONDS, HEARTBEAT_SECONDS, FAIL_SECONDS = 300, 100, 5
NAMES = {'coordinator': 'SCALING_COORDINATOR', 'hosts': 'SCALING_HOSTS', 'host': 'SCALING_HOST'}
POLL_MILLISECONDS = 2000  # while waiting in C++ no Python signal handler runs: so wait in short pieces

# What a collective or a request says when another process is gone: gloo on CPU, NCCL, the coordination service.
LOST = re.compile(
  r'Connection (closed|reset)|Broken pipe|Gloo .*(fail|timed out|Timed out)|heartbeat|'
  r'[Cc]oordination ?[Ss]ervice|tasks? (have|has|is|are) .*(crash|unhealthy|died)|UNAVAILABLE|NCCL.*(abort|remote)',
)


class Lost(Exception):
  """Another host has ended or cannot be reached any more; start again to go on from the last checkpoint."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """Where this process stands among the hosts. `coordinator` None: jax finds out by itself (TPU pods)."""

  coordinator: str | None
  hosts: int
  host: int
  local_device_ids: tuple[int, ...] | None = None  # None: all that this machine has


@dataclasses.dataclass
class _Process:
  """The state of this process."""

  hosts: int = 1
  host: int = 0
  agreed: int = 0  # decisions so far, alike on all hosts
  polled: int = 0
  notice: bool = False


_process = _Process()


def count() -> int:
  """How many hosts run together; 1 before `start`."""
  return _process.hosts


def index() -> int:
  """Which of them this is."""
  return _process.host


def settings(
  coordinator: str | None = None,
  hosts: int | None = None,
  host: int | None = None,
  env: Mapping[str, str] = os.environ,
) -> Settings | None:
  """Where this process stands, by the arguments, else the environment; None where it is alone.

  Raises:
    UserError: settings that are incomplete or contradict each other.
  """
  given: dict[str, Any] = {'coordinator': coordinator, 'hosts': hosts, 'host': host}
  given = {k: env.get(NAMES[k]) if v is None else v for k, v in given.items()}
  given = {k: v for k, v in given.items() if v not in (None, '')}
  if given:
    return _plain(given)
  return _slurm(env) or _tpu(env)


def _plain(given: dict[str, Any]) -> Settings | None:
  n = _whole('hosts', given['hosts'], 1) if 'hosts' in given else None
  if n == 1 and _whole('host', given.get('host', 0), 0) == 0:
    return None
  missing = [NAMES[k] for k in NAMES if k not in given]
  if missing:
    have = ', '.join(f'{NAMES[k]}={v}' for k, v in given.items())
    raise UserError(
      f'{have} without {" and ".join(missing)}: give host 0 as host:port, the number of hosts and this one'
    )
  i = _whole('host', given['host'], 0)
  if i >= n:
    raise UserError(f'{NAMES["host"]}={i} of {NAMES["hosts"]}={n}: hosts are numbered from 0 to {n - 1}')
  name, port = _split(given['coordinator'], NAMES['coordinator'])
  return Settings(f'{name}:{port}', n, i)


def _whole(field: str, value: Any, least: int) -> int:
  try:
    number = int(value)
  except ValueError:
    number = least - 1
  if number < least:
    raise UserError(f'{NAMES[field]}={value!r} is not a whole number from {least}')
  return number


def _split(address: str, what: str) -> tuple[str, int]:
  name, _, port = address.rpartition(':')
  if not name or not port.isdecimal() or not 0 < int(port) < 65536:
    raise UserError(f'{what}={address!r} is not host:port, for instance {(name or address) or "10.0.0.1"}:8476')
  return name, int(port)


def _slurm(env: Mapping[str, str]) -> Settings | None:
  """From the variables that srun sets for each task of a step; a batch script by itself is one process."""
  try:
    tasks, task, nodes = int(env['SLURM_STEP_NUM_TASKS']), int(env['SLURM_PROCID']), env['SLURM_STEP_NODELIST']
    local, job = int(env['SLURM_LOCALID']), int(env['SLURM_JOB_ID'])
  except (KeyError, ValueError):
    return None
  if tasks == 1:
    return None
  # Above the ports that Linux gives to outgoing connections; alike on all tasks, different for steps side by side.
  step = env.get('SLURM_STEP_ID', '0')
  port = 61440 + (8 * job + (int(step) if step.isdecimal() else 0)) % 4096
  # Several tasks on a machine share its GPUs by number, unless SLURM already shows each task its own alone.
  shared = not re.fullmatch('1(\\(x\\d+\\))?', env.get('SLURM_STEP_TASKS_PER_NODE', '1'))
  visible = env.get('CUDA_VISIBLE_DEVICES')
  one_each = visible is not None and ',' not in visible
  return Settings(f'{first_node(nodes)}:{port}', tasks, task, (local,) if shared and not one_each else None)


def first_node(nodes: str) -> str:
  """The first name in SLURM's list of nodes: 'gpu[07-09,12],login' gives 'gpu07'."""
  prefix, number, suffix = re.match(r'([^,\[]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?', nodes).groups(default='')
  return prefix + number + suffix


def _tpu(env: Mapping[str, str]) -> Settings | None:
  """A machine with TPU chips: jax asks it for its pod, and for the slices of a multislice."""
  if env.get('JAX_PLATFORMS', 'tpu').split(',')[0] != 'tpu' or importlib.util.find_spec('libtpu') is None:
    return None
  if not [*Path('/dev').glob('accel*'), *Path('/dev').glob('vfio/[0-9]*')]:
    return None
  slices = env.get('MEGASCALE_NUM_SLICES', '1')
  workers = env.get('TPU_WORKER_HOSTNAMES')
  if workers is not None and ',' not in workers and slices == '1':
    return None
  return Settings(None, 0, 0)


def start(coordinator: str | None = None, hosts: int | None = None, host: int | None = None) -> int:
  """Joins the hosts, before the first use of a device; returns how many there are. Does nothing for a process alone.

  jax takes over SIGTERM here: put the own handler in afterwards.

  Raises:
    UserError: contradicting settings; the coordinator cannot be reached, or not all hosts came, in time. The process
      must then end by `leave`, as a thread may still be waiting in C++.
  """
  found = settings(coordinator, hosts, host)
  if found is None or _process.hosts > 1:
    return _process.hosts
  seconds = _seconds('SCALING_START_SECONDS', START_SECONDS)
  heartbeat = _seconds('SCALING_HEARTBEAT_SECONDS', HEARTBEAT_SECONDS)
  # jax aborts the process, with a stack trace, when its own time is over: ours must be over before.
  options: dict[str, Any] = {
    'initialization_timeout': seconds + 60,
    'heartbeat_timeout_seconds': heartbeat,
    'shutdown_timeout_seconds': heartbeat,
  }
  deadline = time.monotonic() + seconds
  if found.coordinator:
    options |= {
      'coordinator_address': found.coordinator,
      'num_processes': found.hosts,
      'process_id': found.host,
      'local_device_ids': found.local_device_ids,
      'cluster_detection_method': 'deactivate',
    }
    if found.host == 0:
      options['coordinator_bind_address'] = _listen_address(found.coordinator)
    else:
      _wait_for(found, deadline, seconds)
  if not _initialize(options, deadline):
    raise UserError(
      f'host {found.host} waited {seconds} s at {found.coordinator or "the TPU pod"}, and not all '
      f'{found.hosts or ""} hosts came: start each with its own SCALING_HOST, or raise SCALING_START_SECONDS'
    )
  import jax

  _process.hosts, _process.host = jax.process_count(), jax.process_index()
  return _process.hosts


def _initialize(options: dict[str, Any], deadline: float) -> bool:
  """Runs jax.distributed.initialize until the deadline; false when it has not come back."""
  import jax

  failed: list[BaseException] = []

  def run() -> None:
    try:
      jax.distributed.initialize(**options)
    except BaseException as error:
      failed.append(error)

  thread = threading.Thread(target=run, name='hosts', daemon=True)
  thread.start()
  while thread.is_alive() and time.monotonic() < deadline:
    thread.join(0.1)  # in pieces: a signal is then heard
  if failed:
    line = str(failed[0]).strip().partition('\n')[0]
    if isinstance(failed[0], ValueError) and 'coordinator_address' in line:
      return True  # a TPU machine that belongs to no pod
    raise UserError(f'the hosts could not join: {line}')
  return not thread.is_alive()


def _seconds(name: str, default: int) -> int:
  text = os.environ.get(name) or str(default)
  if not text.isdecimal() or int(text) < 1:
    raise UserError(f'{name}={text!r} is not a whole number of seconds, for instance {default}')
  return int(text)


def _listen_address(coordinator: str) -> str:
  """Where host 0 listens: at the coordinator's own address rather than at all of the machine's, where that can be."""
  given = os.environ.get('SCALING_COORDINATOR_BIND')
  name, port = _split(given or coordinator, 'SCALING_COORDINATOR_BIND')
  problem = _cannot_listen(name, port)
  if problem is None:
    return f'{name}:{port}'
  if given or problem.errno == 98:  # EADDRINUSE
    raise UserError(f'host 0 cannot listen at {name}:{port}: {problem.strerror}; take a free port of this machine')
  return f'[::]:{port}'  # behind a translated address, or a name that only the others know


def _cannot_listen(name: str, port: int) -> OSError | None:
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(name.strip('[]'), port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(address)
  except OSError as error:
    return error
  return None


def _wait_for(found: Settings, deadline: float, seconds: int) -> None:
  """Returns when the coordinator accepts a connection."""
  name, port = _split(found.coordinator, NAMES['coordinator'])
  while True:
    try:
      socket.create_connection((name.strip('[]'), port), timeout=5).close()
      return
    except OSError as error:
      if time.monotonic() > deadline:
        raise UserError(
          f'host {found.host} cannot reach the coordinator {found.coordinator} in {seconds} s '
          f'({error.strerror or error}): is host 0 running there, and is the port open?'
        ) from None
    time.sleep(0.2)


def agree(decide: Callable[[], Any], *errors: type[Exception]) -> Any:
  """What host 0 finds, on all hosts: only there is `decide` called. Every host must call this in the same order.

  The value must be fit for JSON. An error of one of the types `errors` is raised on all hosts.

  Raises:
    Lost: host 0 ended otherwise.
  """
  if _process.hosts == 1:
    return decide()
  _process.agreed += 1
  key = f'scaling/agreed/{_process.agreed}'
  if _process.host == 0:
    try:
      value = decide()
    except errors as error:
      _client().key_value_set(key, json.dumps({'error': type(error).__name__, 'line': str(error)}))
      raise
    _client().key_value_set(key, json.dumps({'value': value}))
    return value
  answer = json.loads(_hear(key))
  for kind in errors:
    if answer.get('error') == kind.__name__:
      raise kind(answer['line'])
  return answer['value']


def _hear(key: str) -> str:
  while True:
    try:
      return _client().blocking_key_value_get(key, POLL_MILLISECONDS)
    except Exception as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise Lost(f'host 0 is gone: {str(error).partition(chr(10))[0][:200]}') from error


def _client() -> Any:
  from jax._src import distributed  # the key-value store has no public name

  return distributed.global_state.client


def preempted() -> bool:
  """Whether the coordination service has told all hosts of a preemption. Every host must poll alike, once a step.

  It answers yes at the same poll on all hosts, and from then on. SIGTERM does not come this way when this process
  has its own handler for it.
  """
  if _process.hosts == 1 or _process.notice:
    return _process.notice
  from jax.experimental import multihost_utils

  _process.polled += 1
  try:
    _process.notice = multihost_utils.reached_preemption_sync_point(_process.polled)
  except RuntimeError:  # the service is switched off in jax's configuration
    return False
  return _process.notice


def is_lost(error: BaseException) -> bool:
  """Whether an error says that another host is gone, rather than that this one failed."""
  if isinstance(error, Lost):
    return True
  return _process.hosts > 1 and not isinstance(error, UserError | OSError) and bool(LOST.search(str(error)))


def stop(code: int) -> None:
  """Ends the process with this exit status, after the other hosts have come to their end as well. Does not return."""
  if _process.hosts > 1:
    import jax

    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(_seconds('SCALING_HEARTBEAT_SECONDS', HEARTBEAT_SECONDS))
  leave(code)


def fail(code: int) -> None:
  """Ends the process with this exit status after a failure. Does not return.

  A mistake in a config fails on all hosts alike: then host 0 goes last, as jax aborts with a stack trace where the
  coordination service, which lives in host 0, is gone first. Where the others do not fail, they are not waited for long.
  """
  if _process.hosts > 1:
    with contextlib.suppress(Exception):  # not all have failed, or the service is gone: go either way
      _client().wait_at_barrier('scaling/failed', FAIL_SECONDS * 1000)
    if _process.host == 0:
      time.sleep(1)
  leave(code)


def leave(code: int) -> None:
  """Ends the process now, whatever other hosts or threads do. Does not return."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
