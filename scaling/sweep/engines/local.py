"""Worker processes on this machine: one per core on a CPU, one per device elsewhere.

A worker is `python -m scaling.train.worker --stdin`: it reads run directories from its standard input, one a line,
trains each, and prints one JSON line per run. It stays for many runs, so that compiled programs are used again.
"""

import ctypes
import dataclasses
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

WORKER = (sys.executable, '-m', 'scaling.sweep.engines.local', 'scaling.train.worker', '--stdin')
THREAD_FLAGS = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'
PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Slot:
  """What one worker may use: a core of the CPU, or a device."""

  index: int
  core: int | None = None
  environment: tuple[tuple[str, str], ...] = ()


def slots(workers: int | None = None) -> list[Slot]:
  """One slot per core this process may use, or per accelerator; `workers` asks for another number."""
  gpus, tpus = _gpus(), _tpus()
  if gpus or tpus:
    name = 'CUDA_VISIBLE_DEVICES' if gpus else 'TPU_VISIBLE_CHIPS'
    devices = gpus or tpus
    count = workers or len(devices)
    fraction = () if count <= len(devices) else (('XLA_PYTHON_CLIENT_PREALLOCATE', 'false'),)
    return [Slot(i, None, ((name, devices[i % len(devices)]), *fraction)) for i in range(count)]
  cores = _cores()
  limits = (
    ('JAX_PLATFORMS', 'cpu'),
    ('XLA_FLAGS', f'{_without_simulated_devices(os.environ.get("XLA_FLAGS", ""))} {THREAD_FLAGS}'.strip()),
    *((name, '1') for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')),
  )
  return [Slot(i, cores[i % len(cores)], limits) for i in range(workers or _cpu_quota(len(cores)))]


def worker_count() -> int:
  """How many workers `slots` gives by default."""
  return len(slots())


def platform() -> str:
  """'gpu', 'tpu' or 'cpu': what the slots of this machine are, found without starting jax."""
  return 'gpu' if _gpus() else 'tpu' if _tpus() else 'cpu'


class Worker:
  """One worker process and the run it has in hand."""

  def __init__(self, slot: Slot, log: Path, command: Sequence[str] = WORKER) -> None:
    """Starts the process; what it prints to standard error is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    self.slot = slot
    self.log = log
    self.busy: Path | None = None  # the run directory in hand
    self.given = 0.0  # when it was handed over, on the monotonic clock
    self.peak_bytes = 0
    self.shape: str | None = None  # of the last run: its programs are compiled here
    self.retired = False  # it gets no more runs
    self.stuck = False  # it was ended for showing no life
    self.kills_before = 0  # by the kernel for memory, on this machine, when the run was handed over
    environment = {**os.environ, **dict(slot.environment), 'PYTHONUNBUFFERED': '1'}
    environment['SCALING_WORKER_CORE'] = '' if slot.core is None else str(slot.core)
    environment['SCALING_WORKER_PARENT'] = str(os.getpid())
    with log.open('ab') as errors:
      # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which then stops the workers.
      self.process = subprocess.Popen(
        [*command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True
      )  # fmt: skip
    os.set_blocking(self.process.stdout.fileno(), False)
    self._unread = b''

  def give(self, run_dir: Path, shape: str) -> bool:
    """Hands a run over; False if the process is gone."""
    try:
      self.process.stdin.write(f'{run_dir}\n'.encode())
      self.process.stdin.flush()
    except (BrokenPipeError, ValueError):
      return False
    self.busy, self.shape, self.given = run_dir, shape, time.monotonic()
    return True

  def reports(self) -> list[dict[str, Any]]:
    """JSON lines printed since the last call; other lines go to the log."""
    try:
      text = self.process.stdout.read() or b''
    except (BlockingIOError, ValueError):
      text = b''
    *lines, self._unread = (self._unread + text).split(b'\n')
    out = []
    for line in lines:
      try:
        value = json.loads(line)
      except ValueError:
        value = None
      if isinstance(value, dict):
        out.append(value)
      elif line.strip():
        with self.log.open('ab') as log:
          log.write(line + b'\n')
    return out

  def code(self) -> int | None:
    """The exit code, negative for a signal, or None while the process lives."""
    return self.process.poll()

  def resident_bytes(self) -> int:
    """Memory of the process now, by its resident set; the largest seen is kept in `peak_bytes`."""
    try:
      now = psutil.Process(self.process.pid).memory_info().rss
    except psutil.Error:
      return 0
    self.peak_bytes = max(self.peak_bytes, now)
    return now

  def dismiss(self) -> None:
    """No more runs: an idle worker ends by itself."""
    try:
      self.process.stdin.close()
    except OSError:
      return

  def signal(self, number: int) -> None:
    """A signal to the worker and its children."""
    try:
      os.killpg(self.process.pid, number)
    except (ProcessLookupError, PermissionError):
      return

  def close(self) -> None:
    """Frees the pipes of a process that has ended."""
    self.dismiss()
    self.process.stdout.close()


def stop(workers: Sequence[Worker], seconds: float) -> None:
  """Ends workers: SIGTERM, on which they save a checkpoint, and SIGKILL for those still there after `seconds`."""
  for worker in workers:
    if worker.busy is None:
      worker.dismiss()
    worker.signal(signal.SIGTERM)
  deadline = time.monotonic() + seconds
  for worker in workers:
    try:
      worker.process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      worker.signal(signal.SIGKILL)
      worker.process.wait()
    worker.close()


def out_of_memory_kills() -> int:
  """How many processes the kernel has killed for memory, here or in this control group, since it started."""
  count = 0
  for path, field in (('/proc/vmstat', 'oom_kill'), ('/sys/fs/cgroup/memory.events', 'oom_kill')):
    try:
      for line in Path(path).read_text().splitlines():
        if line.split()[0] == field:
          count += int(line.split()[1])
    except (OSError, ValueError, IndexError):
      continue
  return count


def memory_limit() -> int:
  """Bytes this process and its workers may use together: the machine's, or its control group's if that is less."""
  limit = psutil.virtual_memory().total
  for path in ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'):
    try:
      limit = min(limit, int(Path(path).read_text()))
    except (OSError, ValueError):
      continue
  return limit


def _cores() -> list[int | None]:
  """The cores this process may use; unnumbered where the system cannot bind a process to one."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return [None] * (os.cpu_count() or 1)


def _cpu_quota(cores: int) -> int:
  """Cores, or fewer where the control group gives less time than that."""
  try:
    quota, period = Path('/sys/fs/cgroup/cpu.max').read_text().split()
    return max(1, min(cores, round(int(quota) / int(period))))
  except (OSError, ValueError):
    return cores


def _without_simulated_devices(flags: str) -> str:
  return ' '.join(f for f in flags.split() if 'host_platform_device_count' not in f)


def _gpus() -> list[str]:
  """Indices of NVIDIA GPUs that jax has a plugin for and this process may see."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if platforms and not any(p in platforms for p in ('cuda', 'gpu')):
    return []
  if not any(importlib.util.find_spec(f'jax_cuda{n}_plugin') for n in (12, 13)):
    return []
  found = len(list(Path('/proc/driver/nvidia/gpus').glob('*'))) if Path('/proc/driver/nvidia/gpus').is_dir() else 0
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  return [i for i in visible.split(',') if i] if found and visible is not None else [str(i) for i in range(found)]


def _tpus() -> list[str]:
  """Indices of TPU chips of this host."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if (platforms and 'tpu' not in platforms) or importlib.util.find_spec('libtpu') is None:
    return []
  return [str(i) for i in range(len(list(Path('/dev').glob('accel[0-9]*'))))]


def _enter_worker(argv: Sequence[str]) -> None:
  """In the new process: takes its core, ties its life to the supervisor's, and becomes the module named first."""
  core, parent = os.environ.pop('SCALING_WORKER_CORE', ''), os.environ.pop('SCALING_WORKER_PARENT', '')
  if core:
    os.sched_setaffinity(0, {int(core)})  # before jax counts the cores for its thread pools
  if sys.platform == 'linux':
    # If the supervisor is killed, the worker gets SIGTERM, saves a checkpoint and ends.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent and os.getppid() != int(parent):
      sys.exit(75)  # it died before this was set
  sys.argv = list(argv)
  runpy.run_module(argv[0], run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  _enter_worker(sys.argv[1:])
