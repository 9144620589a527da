"""How long runs take: a rate learned from runs that finished, and the wall time of many on some workers."""

import dataclasses
import heapq
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling import ledger
from scaling.config import Run
from scaling.sweep import records

# One worker process before its first step: Python, jax, the data libraries and compiled programs
# (measured: experiments/LOG.md, "What a worker costs").
PROCESS_BYTES = 1_200_000_000
# One CPU core, one process per core, before any run has finished here (same entry).
DEFAULT_FLOPS_PER_SECOND = 1.0e10
DEFAULT_STEP_SECONDS = 1.4e-3
DEFAULT_RUN_SECONDS = 3.0
MEMORABLE_SECONDS = 120.0  # of training in a sweep, below which its rate says little of other studies
CPU_MODEL_LINES = ('model name', 'CPU part')


@dataclasses.dataclass(frozen=True)
class Rate:
  """seconds(run) = run_seconds + steps * step_seconds + exact FLOPs / flops_per_second, of one worker."""

  flops_per_second: float = DEFAULT_FLOPS_PER_SECOND
  step_seconds: float = DEFAULT_STEP_SECONDS
  run_seconds: float = DEFAULT_RUN_SECONDS
  source: str = 'a default figure for one CPU core; rough until a run has finished here'

  def seconds(self, run: Run) -> float:
    """The estimated seconds of a whole run on one worker."""
    flops = ledger.flops_per_token(run.model, run.data.sequence_length).exact * run.data.trained_tokens
    return self.run_seconds + run.data.steps * self.step_seconds + flops / self.flops_per_second


def rate(finished: Iterable[tuple[Run, Mapping[str, Any]]]) -> Rate:
  """The rate that finished runs showed: theirs if there are two or more, or an earlier sweep's here, or a default.

  Args:
    finished: runs and their results; those that diverged count for the steps they made.
  """
  rows = []
  for run, result in finished:
    seconds, steps = result.get('seconds'), result.get('step') or run.data.steps
    if not seconds or not steps or not math.isfinite(seconds):
      continue
    per_token = ledger.flops_per_token(run.model, run.data.sequence_length).exact
    rows.append((steps, per_token * steps * run.data.batch_tokens, seconds))
  if len(rows) >= 2:
    return _fit(rows, f'{len(rows)} finished runs')
  saved = records.read_json(_file()) or {}
  entry = saved.get(_machine())
  if isinstance(entry, dict):
    return Rate(entry['flops_per_second'], entry['step_seconds'], DEFAULT_RUN_SECONDS, 'earlier sweeps on this machine')
  return Rate()


def remember(learned: Rate) -> None:
  """Keeps a learned rate for other studies on this machine; a cache that cannot be written is no error."""
  saved = records.read_json(_file()) or {}
  saved[_machine()] = {'flops_per_second': learned.flops_per_second, 'step_seconds': learned.step_seconds}
  try:
    records.write_json(_file(), saved)
  except OSError:
    return


def _fit(rows: Sequence[tuple[float, float, float]], source: str) -> Rate:
  """Least squares of relative errors with both terms kept from below zero: two unknowns, so solved by hand."""
  # Unknowns a (seconds per step) and b (seconds per FLOP); each row divided by its seconds, so the target is 1.
  x = [(steps / seconds, flops / seconds) for steps, flops, seconds in rows]
  aa, ab, bb = (sum(u[i] * u[j] for u in x) for i, j in ((0, 0), (0, 1), (1, 1)))
  ya, yb = sum(u[0] for u in x), sum(u[1] for u in x)
  determinant = aa * bb - ab * ab
  if determinant > 1e-9 * aa * bb:
    a, b = (ya * bb - yb * ab) / determinant, (yb * aa - ya * ab) / determinant
  else:
    a, b = -1.0, -1.0
  if a < 0 or b <= 0:
    a, b = 0.0, yb / bb
  return Rate(1 / b, a, DEFAULT_RUN_SECONDS, source)


def makespan(seconds: Iterable[float], workers: int) -> float:
  """Wall time of jobs taken longest first by that many workers."""
  loads = [0.0] * max(1, workers)
  for job in sorted(seconds, reverse=True):
    heapq.heapreplace(loads, loads[0] + job)
  return max(loads)


def duration(seconds: float) -> str:
  """75 -> '1 min 15 s'."""
  if seconds <= 0:
    return '0 s'
  if seconds < 9.95:
    return f'{seconds:.1f} s'
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  minutes, rest = divmod(whole, 60)
  if minutes < 60:
    return f'{minutes} min {rest:02d} s'
  hours, minutes = divmod(minutes, 60)
  if hours < 48:
    return f'{hours} h {minutes:02d} min'
  return f'{hours / 24:.1f} days'


def _file() -> Path:
  from scaling.data import cache

  return cache.root() / 'timing.json'


def _machine() -> str:
  """What the rate holds for: the accelerators this process is given, or the CPU's model."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  names = {line.partition(':')[2].strip() for line in lines if line.startswith(CPU_MODEL_LINES)}
  return ' '.join([os.environ.get('JAX_PLATFORMS', ''), *sorted(names)]).strip() or 'unknown'
