"""The supervisor: hands runs to workers, longest first, and outlives whatever happens to them.

The run directory alone says whether a run is done. A worker that is killed, crashes or hangs is replaced and its
run given out again, from its last checkpoint. Preempted runs come back nearly without limit; a run that fails
`FAILURES` times without getting further is reported and left, and the others go on.
"""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from scaling.sweep import records
from scaling.sweep.engines import local

FAILURES = 3
PREEMPTIONS = 1000
PREEMPTED = 75
GRACE_SECONDS = 30.0  # to save a checkpoint after SIGTERM
POLL_SECONDS = 0.1
HELD_SECONDS = 5.0  # before a run that another process holds is asked for again
GROWN_BYTES = 1_000_000_000  # each compile leaves memory behind: above this a worker is renewed before its next shape
ALIKE = 3  # this many different runs failing alike, and none succeeding, ends the sweep


@dataclasses.dataclass
class Job:
  """One run to be trained, and what has happened to it."""

  run_id: str
  name: str
  run_dir: Path
  steps: int
  batch_tokens: int
  seconds: float  # estimated, of what is left
  shape: str
  bytes: int = 0  # estimated memory of a worker at it
  failures: int = 0
  preemptions: int = 0
  best_step: int = 0  # the furthest that any attempt got
  alone: bool = False  # it ran out of memory beside others
  not_before: float = 0.0
  status: str = 'waiting'  # 'running', then 'done', 'diverged', 'failed', or 'stopped'
  message: str = ''
  began: float = 0.0
  elapsed: float = 0.0


class View(Protocol):
  """What watches a sweep."""

  def update(self, sweep: 'Sweep') -> None: ...
  def finished(self, sweep: 'Sweep', job: Job) -> None: ...
  def note(self, text: str) -> None: ...


@dataclasses.dataclass
class Sweep:
  """The jobs of a sweep on some slots of this machine; `run()` returns when none is left or a signal came."""

  jobs: Sequence[Job]
  slots: Sequence[local.Slot]
  logs: Path
  view: View
  command: Sequence[str] = local.WORKER
  stuck_seconds: float = 900.0  # without a sign of life
  memory_limit: int = dataclasses.field(default_factory=local.memory_limit)
  workers: list[local.Worker] = dataclasses.field(default_factory=list)
  restarts: int = 0
  peak_bytes: int = 0  # of the supervisor and all workers together
  stopped_by: int = 0  # a signal number
  gave_up: str = ''  # the failure that many runs shared

  def run(self) -> None:
    """Trains the jobs. Each one's `status` and `message` say how it ended."""
    self.logs.mkdir(parents=True, exist_ok=True)
    with self._signals():
      try:
        while self.active and not self.stopped_by and not self.gave_up:
          self._step()
          time.sleep(POLL_SECONDS)
      finally:
        self.view.update(self)
        local.stop(self.workers, GRACE_SECONDS if self.stopped_by else 1.0)
        for job in self.jobs:
          if job.status in ('waiting', 'running'):
            now = records.state(job.run_dir, job.steps)
            job.status = now.status if now.finished else 'stopped'

  @property
  def active(self) -> bool:
    """Some job waits or runs."""
    return any(job.status in ('waiting', 'running') for job in self.jobs)

  def of_status(self, *statuses: str) -> list[Job]:
    """The jobs in these states."""
    return [job for job in self.jobs if job.status in statuses]

  def _step(self) -> None:
    for worker in list(self.workers):
      self._listen(worker)
      self._look_after(worker)
    self._hand_out()
    total = psutil.Process().memory_info().rss + sum(worker.resident_bytes() for worker in self.workers)
    self.peak_bytes = max(self.peak_bytes, total)
    self.view.update(self)

  def _listen(self, worker: local.Worker) -> None:
    for report in worker.reports():
      job = self._job(worker)
      if job is None or not _about(report, job):
        continue
      worker.busy = None
      now = records.state(job.run_dir, job.steps)
      if now.finished:
        self._end(job, now.status)
      elif report.get('status') == 'preempted' or report.get('kind') == 'interrupted':
        self._preempted(job)
      elif report.get('status') == 'busy':
        job.status, job.not_before = 'waiting', time.monotonic() + HELD_SECONDS
      else:
        self._failed(job, now.message or records.failure_line(report), now, str(report.get('kind')))

  def _look_after(self, worker: local.Worker) -> None:
    """Replaces a worker that has ended, and ends one that shows no life."""
    code = worker.code()
    if code is None:
      if worker.busy is not None and self._silent_for(worker) > self.stuck_seconds:
        worker.stuck = True
        worker.signal(signal.SIGKILL)
        worker.process.wait()
        code = worker.code()
      else:
        return
    self._listen(worker)  # what it printed last
    self.workers.remove(worker)
    job = self._job(worker)
    worker.close()
    if job is None:
      return
    self.restarts += 1
    now = records.state(job.run_dir, job.steps)
    if now.finished:
      self._end(job, now.status)
    elif code == PREEMPTED or code == -signal.SIGTERM:
      self._preempted(job)
    else:
      self._failed(job, self._cause(worker, code, now), now)

  def _cause(self, worker: local.Worker, code: int, now: records.State) -> str:
    """One line on why a worker ended in the middle of a run."""
    size = f'its memory was up to {worker.peak_bytes / 1e9:.2f} GB'
    if worker.stuck:
      return f'no sign of life for {self.stuck_seconds:g} s: stopped as stuck'
    if code == -signal.SIGKILL:
      crowded = self.peak_bytes > 0.8 * self.memory_limit
      if local.out_of_memory_kills() > worker.kills_before or crowded:
        return f'out of memory: killed by the kernel (signal 9); {size} of {self.memory_limit / 1e9:.2f} GB'
      return f'killed (signal 9) from outside, with no sign that memory ran out; {size}'
    if code < 0:
      return f'crashed with {signal.Signals(-code).name} (signal {-code}); see {worker.log}'
    if now.message:
      return now.message
    return f'the worker ended with exit code {code}: {_last_line(worker.log)}'

  def _failed(self, job: Job, message: str, now: records.State, kind: str = 'crash') -> None:
    if is_out_of_memory(message):
      job.alone = True  # the next attempt has the machine to itself
      if not message.startswith('out of memory'):
        message = f'out of memory: {message}'
    if now.step > job.best_step:  # it got further than before: not the same obstacle
      job.failures = 0
      job.best_step = now.step
    job.failures += 1
    job.message = message
    if kind == 'disk':
      self.gave_up = message  # the next run would meet the same
    if job.failures >= FAILURES or kind in ('user', 'disk'):
      self._end(job, 'failed')
      alike = [j for j in self.jobs if j.status == 'failed' and j.message == message]
      if len(alike) >= ALIKE and not self.of_status('done', 'diverged'):
        self.gave_up = message
    else:
      job.status = 'waiting'
      self.view.note(f'{job.name}: {message}; trying again ({job.failures} of {FAILURES} attempts)')

  def _preempted(self, job: Job) -> None:
    job.preemptions += 1
    job.status = 'waiting'
    if job.preemptions > PREEMPTIONS:
      job.message = f'preempted {job.preemptions} times'
      self._end(job, 'failed')

  def _end(self, job: Job, status: str) -> None:
    job.status = status
    job.elapsed += time.monotonic() - job.began
    self.view.finished(self, job)

  def _hand_out(self) -> None:
    """Gives waiting jobs to idle workers, and starts workers for slots that have none."""
    if self.gave_up or self.stopped_by:
      return
    taken = {worker.slot.index for worker in self.workers}
    idle: list[local.Worker | local.Slot] = [w for w in self.workers if w.busy is None and not w.retired]
    idle += [slot for slot in self.slots if slot.index not in taken]
    for place in idle:
      job = self._next(place.shape if isinstance(place, local.Worker) else None)
      if job is None:
        return
      if isinstance(place, local.Worker):
        worker = place
        if job.shape != worker.shape and not job.bytes and worker.resident_bytes() > GROWN_BYTES:
          worker.retired = True
          worker.dismiss()
          continue
      else:
        worker = local.Worker(place, self.logs / f'worker-{place.index}.log', self.command)
        self.workers.append(worker)
      (job.run_dir / 'failure.json').unlink(missing_ok=True)  # of an earlier attempt
      worker.kills_before = local.out_of_memory_kills()
      if worker.give(job.run_dir, job.shape):
        job.status, job.began = 'running', time.monotonic()

  def _next(self, shape: str | None) -> Job | None:
    """The longest waiting job, or the longest of the worker's last shape while that delays nothing."""
    running = self.of_status('running')
    if any(job.alone for job in running):
      return None
    now = time.monotonic()
    waiting = [job for job in self.of_status('waiting') if job.not_before <= now]
    shared = [job for job in waiting if not job.alone]
    waiting = shared or ([] if running else waiting)  # those that want the machine alone come last
    used = sum(job.bytes for job in running)
    waiting = [job for job in waiting if not running or used + job.bytes <= 0.9 * self.memory_limit]
    return choose(waiting, shape, len(self.slots))

  def _job(self, worker: local.Worker) -> Job | None:
    return next((job for job in self.jobs if job.run_dir == worker.busy), None) if worker.busy else None

  def _silent_for(self, worker: local.Worker) -> float:
    beat = records.heartbeat(worker.busy)
    quiet = time.monotonic() - worker.given
    return quiet if beat is None else min(quiet, max(0.0, time.time() - beat))

  @contextlib.contextmanager
  def _signals(self) -> Iterator[None]:
    """SIGINT and SIGTERM end the sweep in good order; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
      yield
      return

    def handle(number: int, frame: object) -> None:
      if self.stopped_by:
        for worker in self.workers:
          worker.signal(signal.SIGKILL)
      self.stopped_by = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


def choose(waiting: Sequence[Job], shape: str | None, workers: int) -> Job | None:
  """The next job for a worker whose last one had this shape.

  Longest first keeps the end of a sweep short, but only a job that is long beside what remains has to begin now.
  Until then a worker stays with its shape, whose programs it has compiled.
  """
  if not waiting:
    return None
  longest = max(waiting, key=lambda job: job.seconds)
  same = [job for job in waiting if job.shape == shape]
  remaining = sum(job.seconds for job in waiting)
  if not same or longest.seconds * 2 * workers >= remaining:
    return longest
  return max(same, key=lambda job: job.seconds)


def is_out_of_memory(message: str) -> bool:
  """Whether a failure's line says that memory, of the host or of a device, ran out."""
  return any(sign in message for sign in ('out of memory', 'Out of memory', 'MemoryError', 'RESOURCE_EXHAUSTED'))


def progress(job: Job) -> int:
  """Tokens that a job has trained so far."""
  step = job.steps if job.status == 'done' else records.last_step(job.run_dir)
  return min(step, job.steps) * job.batch_tokens


def _about(report: dict, job: Job) -> bool:
  """Whether a worker's report is on this job; a report without a name is on the run in hand."""
  named = report.get('run_id') or Path(str(report.get('run_dir', job.run_dir))).name
  return named in (job.run_id, job.run_dir.name)


def _last_line(log: Path) -> str:
  try:
    lines = log.read_text(encoding='utf-8', errors='replace').strip().splitlines()
  except OSError:
    lines = []
  return lines[-1].strip() if lines else f'nothing was said in {log}'
