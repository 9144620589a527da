"""The training loop: dispatch steps, evaluate, write rows, checkpoint; killed anywhere, it goes on as if it had not been.

The host stays ahead of the device: rows are read and written while later steps run, and only as many dispatches are
in flight as keep the device busy.
"""

import collections
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scaling import data
from scaling.config import Execution, Run
from scaling.data import tokens
from scaling.data.stream import Stream
from scaling.errors import UserError
from scaling.parallel import hosts
from scaling.parallel import mesh as meshes
from scaling.train import lease, records, schedule
from scaling.train.checkpoint import Checkpoints
from scaling.train.feed import Feed
from scaling.train.profile import Profile
from scaling.train.rows import Rows
from scaling.train.state import State
from scaling.train.step import Metrics, Program, compile_program, make_program, snapshot

IN_FLIGHT = 2  # dispatches of many steps
IN_FLIGHT_STEPS = 8  # dispatches of one step
NOTHING, SAVE, STOP = 0, 1, 2  # what a host asks of all


def evaluation_steps(run: Run) -> list[int]:
  """The steps after which the model is evaluated: at the start, then evenly, the last at the end."""
  steps, count = run.data.steps, min(run.evaluations, run.data.steps)
  return sorted({round(i * steps / count) for i in range(count + 1)})


def train(
  run: Run, run_dir: Path | str, execution: Execution | None = None, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
  """Trains a run to its end in `run_dir`, from its last checkpoint if it has one; returns what result.json holds.

  When `stop()` becomes true, a checkpoint is written and {'status': 'preempted', 'step': ...} returned. A run that is
  already finished returns its result at once.

  Raises:
    UserError: the run, the data or the mesh do not fit together, or the directory holds another run.
    lease.Busy: another worker is training it.
    lease.Lost: another worker has taken it over.
    OSError: among others, the disk is full.
  """
  run, run_dir, execution = data.resolve(run), Path(run_dir), execution or Execution()
  with contextlib.ExitStack() as held:
    checks: list[Callable[[], None]] = []

    def claim() -> dict[str, Any] | None:
      """Takes the directory for this run; returns its result where nothing is left to do."""
      records.write_config(run_dir, run, execution)
      if finished := records.result(run_dir):
        return finished
      checks.append(held.enter_context(lease.hold(run_dir)).check)
      if finished := records.result(run_dir):  # by the former holder, meanwhile
        return finished
      (run_dir / records.FAILURE).unlink(missing_ok=True)
      return None

    finished = hosts.agree(claim, UserError, lease.Busy)
    return finished or _train(run, run_dir, execution, stop, checks[0] if checks else lambda: None)


def _train(
  run: Run, run_dir: Path, execution: Execution, stop: Callable[[], bool], check: Callable[[], None]
) -> dict[str, Any]:
  mesh = meshes.make(meshes.resolve(execution.mesh, jax.device_count(), run.model))
  program = make_program(run, execution, mesh)
  store = tokens.open_store(run.data)
  feed = Feed(Stream(store, run.data, run.seed), program)
  profile = Profile(execution.profile, run_dir)
  checkpoints = Checkpoints(run_dir / 'checkpoints', execution.keep_checkpoints)
  validation = feed.validation()
  program = compile_program(program, run.data, validation, fresh=not checkpoints.steps())
  state, seconds = checkpoints.restore(program.shapes) or (program.init(jax.random.key(run.seed)), 0.0)
  rows = Rows(run, run_dir, store, int(state.step), seconds, check)
  try:
    state, preempted = _steps(run, execution, program, feed, validation, state, rows, checkpoints, profile, stop)
    checkpoints.wait()
    if preempted:
      return {'status': 'preempted', 'step': int(state.step)}
    return rows.finish(mesh)
  finally:
    rows.close()
    checkpoints.close()


def _steps(
  run: Run,
  execution: Execution,
  program: Program,
  feed: Feed,
  validation: Any,
  state: State,
  rows: Rows,
  checkpoints: Checkpoints,
  profile: Profile,
  stop: Callable[[], bool],
) -> tuple[State, bool]:
  """Runs all steps that are left; returns the last state and whether `stop` ended them early."""
  steps, rate = run.data.steps, schedule.learning_rate(run.optim, run.data.steps)
  evaluate_at = evaluation_steps(run)
  boundaries = sorted({*evaluate_at, *profile.steps, steps})
  requests = Requests(program)
  in_flight: collections.deque[Metrics] = collections.deque()
  # Collectives between processes on CPU: with several programs under way at once, their threads were seen to wait for
  # each other for ever.
  one_by_one = jax.process_count() > 1 and program.mesh.devices.flat[0].platform == 'cpu'
  limit = 0 if one_by_one else IN_FLIGHT if program.capacity > 1 else IN_FLIGHT_STEPS
  step = int(state.step)
  saved, saved_at = step, time.monotonic()
  request = NOTHING

  def evaluate(params: Any) -> jax.Array:
    loss = program.evaluate(params, validation)
    return jax.block_until_ready(loss) if one_by_one else loss

  if step in evaluate_at and not hosts.agree(lambda: rows.has(step)):
    rows.add(step, snapshot(state), evaluate(state.params))
  while step < steps and rows.diverged is None and request != STOP:
    profile.at(step, state)
    count = min(program.capacity, next(b for b in boundaries if b > step) - step)
    rates = np.zeros(program.capacity, np.float32)
    rates[:count] = rate(np.arange(step, step + count))
    due = 0 < execution.checkpoint_seconds < time.monotonic() - saved_at
    request = STOP if stop() else SAVE if due else NOTHING
    state, metrics = program.train(
      state, feed.train(step, count), rates, np.int32(count), np.bool_(step in evaluate_at), requests.send(request)
    )
    step += count
    in_flight.append(metrics)
    if step in evaluate_at:
      rows.add(step, metrics, evaluate(state.params))
    oldest = in_flight.popleft() if len(in_flight) > limit else None
    if oldest is not None:
      rows.settle(oldest)
    request = requests.agreed(request, oldest, saved)
    if request != NOTHING or step == steps or (execution.checkpoint_seconds == 0 and step in evaluate_at):
      while in_flight:
        rows.settle(in_flight.popleft())
      rows.flush()  # first, so that no checkpoint is ever ahead of the rows before it
      if rows.diverged is None:
        checkpoints.save(step, state, rows.seconds())
        saved, saved_at = step, time.monotonic()
  profile.stop(state)
  return state, request == STOP and step < steps and rows.diverged is None


class Requests:
  """What the hosts ask for travels with their dispatches, so that all act alike without talking otherwise.

  Each host sends its request as its part of a small array; the step returns the largest; and all hosts read that
  from the same dispatch at the same point of their loops. A host alone is answered at once.
  """

  def __init__(self, program: Program) -> None:
    self._sharding, self._size = program.signal_sharding, program.mesh.size
    self._made: dict[int, jax.Array] = {}

  def send(self, request: int) -> jax.Array:
    request = request if jax.process_count() > 1 else NOTHING
    if request not in self._made:
      self._made[request] = jax.make_array_from_callback(
        (self._size,), self._sharding, lambda index: np.full(self._size, request, np.int32)[index]
      )
    return self._made[request]

  def agreed(self, mine: int, oldest: Metrics | None, saved: int) -> int:
    """What to do now: `oldest` is the dispatch that all have just waited for, `saved` the last checkpoint's step."""
    if jax.process_count() == 1:
      return mine
    if oldest is None or int(oldest.step) <= saved:  # asked for before that checkpoint
      return NOTHING
    return int(oldest.signal)
