"""Checkpoints by orbax: asynchronous, sharded, the last few kept. All that is known of orbax is in this file."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling.parallel import hosts
from scaling.train.state import State

log = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints of one run.

  orbax is imported at the first save or restore: a run that needs neither does not wait for it. A checkpoint is a
  folder named by its step, renamed into place when whole, so a process killed while saving leaves the former ones.
  """

  def __init__(self, folder: Path, keep: int) -> None:
    self.folder, self._keep = folder.absolute(), keep
    self._open: Any = None

  def steps(self) -> list[int]:
    """The steps of the whole checkpoints, in order; as host 0 sees them, on all hosts."""
    return hosts.agree(self._steps)

  def _steps(self) -> list[int]:
    if not self.folder.is_dir():
      return []
    return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir())

  def restore(self, shapes: State) -> tuple[State, float] | None:
    """The newest readable state, laid out as `shapes` says (on any mesh), and the seconds trained before it; or None.

    A checkpoint that cannot be read is passed over for the one before it, with a line in the log. Raises the error
    when there are checkpoints and none can be read.
    """
    steps = self.steps()
    error = None
    for step in reversed(steps):
      try:
        restored = self._manager().restore(step, args=_orbax().args.StandardRestore(_tree(shapes, np.float64(0))))
        return State(**restored['state']), float(restored['seconds'])
      except Exception as e:
        if jax.process_count() > 1:
          raise  # the hosts must not restore different steps
        log.warning('the checkpoint of step %d in %s cannot be read: %s', step, self.folder, e)
        error = error or e
    if error is not None:
      raise error
    return None

  def save(self, step: int, state: State, seconds: float) -> None:
    """Starts writing; waits only until the state is copied out, and for the former save if it is still running."""
    if jax.default_backend() == 'cpu':
      # Host and device are one memory here: without a copy the next step would overwrite what is being written.
      state = jax.tree.map(jnp.copy, state)
    self._manager().save(step, args=_orbax().args.StandardSave(_tree(state, np.float64(seconds))))

  def wait(self) -> None:
    """Returns when the last save is whole on disk; raises its error."""
    if self._open is not None:
      self._open.wait_until_finished()

  def close(self) -> None:
    """Ends the saving threads, and removes what a failed save has left: on a full disk that is room for other files."""
    if self._open is None:
      return
    manager, self._open = self._open, None
    try:
      manager.close()
    finally:
      if hosts.index() == 0:
        for part in self.folder.glob('*.orbax-checkpoint-tmp*'):
          shutil.rmtree(part, ignore_errors=True)

  def _manager(self) -> Any:
    if self._open is None:
      ocp = _orbax()
      hosts.agree(lambda: self.folder.mkdir(parents=True, exist_ok=True))
      # Naming the processes makes orbax wait for them through the coordination service: its other way is a collective on
      # the devices, which on CPU could mix with those of a step.
      processes = set(range(hosts.count())) if hosts.count() > 1 else None
      options = ocp.CheckpointManagerOptions(
        max_to_keep=self._keep,
        create=False,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
        multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, active_processes=processes),
      )
      self._open = ocp.CheckpointManager(self.folder, options=options)
    return self._open


def _orbax() -> Any:
  import orbax.checkpoint as ocp

  logging.getLogger('absl').setLevel(logging.WARNING)  # orbax tells of each step of each save
  return ocp


def _tree(state: State, seconds: np.float64) -> dict[str, Any]:
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  return {'state': fields, 'seconds': seconds}
