"""Traces of some steps for TensorBoard and XProf, by `execution.profile`."""

from pathlib import Path
from typing import Any

import jax

from scaling.errors import UserError


class Profile:
  """Traces steps FIRST (counted from 0) up to but not including LAST into RUN_DIR/profile.

  Attributes:
    steps: where a dispatch must end, so that whole dispatches are traced.
  """

  def __init__(self, text: str, run_dir: Path) -> None:
    self.steps: tuple[int, ...] = ()
    self._folder, self._running = run_dir / 'profile', False
    if text:
      first, _, last = text.partition(':')
      if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UserError(f'execution.profile={text!r}: write FIRST:LAST steps, for instance 10:13')
      self.steps = (int(first), int(last))

  def at(self, step: int, state: Any) -> None:
    """Starts or stops the trace where `step` is the next one; waits for the device only then."""
    if self.steps and step == self.steps[0]:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._folder)
      self._running = True
    elif self._running and step >= self.steps[1]:
      self.stop(state)

  def stop(self, state: Any) -> None:
    if self._running:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self._running = False
