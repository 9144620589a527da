"""One worker per run directory: a lease by exclusive creation of the next generation file.

The holder of the highest `lease.<n>` owns the run while it keeps touching that file, until it writes `released` into it.
A takeover creates `lease.<n+1>` with O_EXCL, which one process alone can do; a generation is never removed or
rewritten by another, since either would let two slow claimants both believe that they hold the run.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

TOUCH_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a touch: the holder is dead, or has been stopped for so long that it lost the run


class Busy(Exception):
  """Another live worker holds the run. The message names it."""


class Lost(Exception):
  """Another worker took the run over, as this one did not touch its lease for too long."""


class Lease:
  """A held lease; `check()` before each write to the run directory."""

  def __init__(self, run_dir: Path, generation: int) -> None:
    self.path = run_dir / f'lease.{generation}'
    self._next = run_dir / f'lease.{generation + 1}'
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._touch, name='lease', daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises Lost when a newer generation exists."""
    if self._next.exists():
      raise Lost(f'{self._next} exists: another worker has taken the run over')

  def release(self) -> None:
    self._stop.set()
    self._thread.join()
    # On a full disk the mark may fail; the run is then free once this process has ended.
    with contextlib.suppress(OSError):
      self.path.write_text(json.dumps({'released': True}), encoding='utf-8')

  def _touch(self) -> None:
    while not self._stop.wait(TOUCH_SECONDS):
      with contextlib.suppress(OSError):
        os.utime(self.path)


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[Lease]:
  """Holds the run while the block runs. Raises Busy where another live worker has it."""
  lease = take(run_dir)
  try:
    yield lease
  finally:
    lease.release()


def take(run_dir: Path, stale_seconds: float = STALE_SECONDS) -> Lease:
  """Takes the lease of a run, new or over from a holder that released it or is dead. Raises Busy otherwise."""
  run_dir.mkdir(parents=True, exist_ok=True)
  generation = newest(run_dir)
  if (holder := live_holder(run_dir, stale_seconds)) is not None:
    raise Busy(f'{run_dir} is being trained by process {holder["pid"]} on {holder["host"]}')
  path = run_dir / f'lease.{generation + 1}'
  try:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
  except FileExistsError:
    raise Busy(f'{run_dir} was taken by another worker just now') from None
  with os.fdopen(handle, 'w', encoding='utf-8') as file:
    json.dump(
      {'host': socket.gethostname(), 'boot': _boot(), 'pid': os.getpid(), 'started': _started(os.getpid())}, file
    )
  return Lease(run_dir, generation + 1)


def newest(run_dir: Path) -> int:
  """The highest generation, or 0."""
  numbers = [path.suffix[1:] for path in run_dir.glob('lease.*')]
  return max((int(n) for n in numbers if n.isdecimal()), default=0)


def live_holder(run_dir: Path, stale_seconds: float = STALE_SECONDS) -> dict | None:
  """Who holds the run now: host and pid; None where it is free. For the status view too."""
  generation = newest(run_dir)
  path = run_dir / f'lease.{generation}'
  try:
    text = path.read_text(encoding='utf-8')
    touched = path.stat().st_mtime
  except OSError:
    return None
  try:
    holder = json.loads(text)
  except ValueError:
    holder = {'pid': '?', 'host': '?'}  # being written, or its writer was killed before writing: its age decides
  if holder.get('released'):
    return None
  if holder.get('host') == socket.gethostname() and holder.get('boot') == _boot():
    # On this very machine no timeout is needed: is that process alive, and not another with its number?
    started = _started(holder['pid'])
    return holder if started is not None and started == holder.get('started') else None
  return holder if _file_system_now(run_dir) - touched < stale_seconds else None


def _file_system_now(run_dir: Path) -> float:
  """The time by the clock that also stamps the leases: the file server's, where the directory is on one."""
  probe = run_dir / f'.clock-{uuid.uuid4().hex}'
  try:
    probe.touch()
    return probe.stat().st_mtime
  except OSError:
    return time.time()
  finally:
    with contextlib.suppress(OSError):
      probe.unlink()


def _boot() -> str:
  """Names this boot of this machine, or of this container's host; empty where the system does not say."""
  try:
    namespace = os.readlink('/proc/self/ns/pid')  # noqa: PTH115
    return Path('/proc/sys/kernel/random/boot_id').read_text().strip() + namespace
  except OSError:
    return ''


def _started(pid: int) -> str | None:
  """When a process started, in clock ticks since boot; None where there is none, or it is dead and not yet reaped."""
  try:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return None if fields[0] in 'ZX' else fields[19]
  except OSError:
    pass
  if Path('/proc/self').exists():
    return None
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except OSError:
    pass
  return 'alive'
