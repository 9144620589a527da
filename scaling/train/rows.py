"""Rows of a run: read from the device while later steps run, written in order, summed up in result.json."""

import collections
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scaling import ledger
from scaling.config import Run
from scaling.data.tokens import TokenStore
from scaling.models import layers
from scaling.parallel import mesh as meshes
from scaling.train import records, schedule
from scaling.train.step import Metrics

PROGRESS_SECONDS = 1.0


class Rows:
  """Evaluations that are under way, and the rows already written.

  Every process keeps it alike, as it decides when training ends; only process 0 writes.

  Args:
    run: resolved.
    store: its tokens.
    step, seconds: where training starts, and the seconds trained before.
    check: called before each write; raises when the directory is no longer this worker's.

  Attributes:
    diverged: the first update whose loss or gradient was not finite, as far as is known by now, or None.
  """

  def __init__(
    self, run: Run, run_dir: Path, store: TokenStore, step: int, seconds: float, check: Callable[[], None]
  ) -> None:
    self.diverged: int | None = None
    self._run, self._run_dir, self._store, self._check = run, run_dir, store, check
    self._flops = ledger.flops_per_token(run.model, run.data.sequence_length).to_dict()
    self._rate = schedule.learning_rate(run.optim, run.data.steps)
    self._waiting: collections.deque[tuple[int, Metrics, jax.Array]] = collections.deque()
    self._file = records.Metrics(run_dir, after=step) if jax.process_index() == 0 else None
    self._last_loss: float | None = None
    self._before, self._start = seconds, time.monotonic()
    self._mark = self._begin = (step, seconds)  # of the last row, and of this process
    self._told = -PROGRESS_SECONDS

  def seconds(self) -> float:
    """Seconds trained, over all restarts; start-up and compilation are not counted."""
    return self._before + time.monotonic() - self._start

  def has(self, step: int) -> bool:
    return self._file is None or step in self._file.rows

  def add(self, step: int, metrics: Metrics, loss: jax.Array) -> None:
    """Takes an evaluation just dispatched; its row is written once it has arrived."""
    for array in jax.tree.leaves((metrics, loss)):
      array.copy_to_host_async()
    self._waiting.append((step, metrics, loss))

  def settle(self, metrics: Metrics) -> None:
    """Waits for a dispatch, and writes the rows that lie before its end."""
    # All local copies, not just the one that is read: on CPU the dispatch's collectives may still be under way on others.
    seen = jax.device_get(jax.block_until_ready(metrics))
    while self._waiting and self._waiting[0][0] < seen.step:
      self._write(*self._waiting.popleft())
    if seen.diverged_step >= 0 and self.diverged is None:
      self.diverged = int(seen.diverged_step)
    self._note(seen)
    if self._file is not None and time.monotonic() - self._told > PROGRESS_SECONDS:
      self._told = time.monotonic()
      self._check()
      records.progress(
        self._run_dir,
        step=int(seen.step),
        steps=self._run.data.steps,
        tokens=int(seen.step) * self._run.data.batch_tokens,
        train_loss=records.finite(float(seen.last_loss)),
        seconds=self.seconds(),
        tokens_per_second=self._speed(self._begin, int(seen.step)),
      )

  def flush(self) -> None:
    """Writes all rows there are, to the disk itself."""
    while self._waiting:
      self._write(*self._waiting.popleft())
    if self._file is not None:
      self._file.sync()

  def finish(self, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Writes result.json, after the last row; returns what it holds."""
    run, data = self._run, self._run.data
    step = data.steps if self.diverged is None else self.diverged
    tokens = step * data.batch_tokens
    seconds = self._mark[1] if self.diverged is None else self.seconds()  # the last checkpoint does not count
    rows = [] if self._file is None else [row for _, row in sorted(self._file.rows.items())]
    last = rows[-1] if rows else {'loss': None, 'bits_per_byte': None, 'train_loss': None}
    with meshes.use(mesh):
      dtype = str(layers.compute_dtype(run.model))
    result = {
      'run_id': run.run_id,
      'name': run.name,
      'status': 'done' if self.diverged is None else 'diverged',
      'step': step,
      'diverged_step': self.diverged,
      'loss': last['loss'],
      'bits_per_byte': last['bits_per_byte'],
      'train_loss': last['train_loss'] if self.diverged is None else self._last_loss,
      'tokens': tokens,
      **{f'params_{k}': v for k, v in ledger.parameters(run.model).to_dict().items()},
      **{f'flops_{k}': v * tokens for k, v in self._flops.items()},
      'seconds': seconds,
      'tokens_per_second': self._speed(self._begin, step, seconds),
      'platform': mesh.devices.flat[0].platform,
      'device_kind': mesh.devices.flat[0].device_kind,
      'devices': mesh.size,
      'mesh': ','.join(f'{k}={v}' for k, v in mesh.shape.items() if v > 1) or 'data=1',
      'dtype': dtype,
      'versions': {name: metadata.version(name) for name in ('jax', 'flax', 'optax', 'orbax-checkpoint')},
    }
    if self._file is not None:
      self._check()
      records.write_json(self._run_dir / records.RESULT, result)
      (self._run_dir / records.PROGRESS).unlink(missing_ok=True)
    return result

  def close(self) -> None:
    if self._file is not None:
      self._file.close()

  def _write(self, step: int, metrics: Metrics, loss: jax.Array) -> None:
    seen, value = jax.device_get((metrics, loss))
    value = float(value)
    if self.diverged is None and (seen.diverged_step >= 0 or not np.isfinite(value)):
      self.diverged = int(seen.diverged_step) if seen.diverged_step >= 0 else step
    self._note(seen)
    if self.diverged is not None or self.has(step):
      return
    self._check()
    tokens = step * self._run.data.batch_tokens
    self._file.append(
      {
        'step': step,
        'tokens': tokens,
        'loss': value,
        'train_loss': records.finite(float(seen.train_loss)),
        'bits_per_byte': float(self._store.bits_per_byte(value)),
        'grad_norm': float(seen.grad_norm) if step else None,
        'learning_rate': float(self._rate(step - 1)) if step else 0.0,
        **{f'flops_{k}': v * tokens for k, v in self._flops.items()},
        'seconds': self.seconds(),
        'tokens_per_second': self._speed(self._mark, step),
      }
    )
    self._mark = (step, self.seconds())

  def _note(self, seen: Metrics) -> None:
    self._last_loss = records.finite(float(seen.last_loss))

  def _speed(self, since: tuple[int, float], step: int, now: float | None = None) -> float | None:
    """Tokens per second since a (step, seconds); None where there is no time between."""
    seconds = (self.seconds() if now is None else now) - since[1]
    return (step - since[0]) * self._run.data.batch_tokens / seconds if step > since[0] and seconds > 0 else None
