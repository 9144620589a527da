"""From the stream's batches to arrays on the mesh; each host reads only the rows that its devices hold."""

from typing import Any

import jax
import numpy as np

from scaling.data.stream import Batch, Stream
from scaling.train.step import Program


class Feed:
  """Stacked batches for a program."""

  def __init__(self, stream: Stream, program: Program) -> None:
    self._stream, self._sharding, self._capacity = stream, program.batch_sharding, program.capacity
    self._batch_size = stream.data.batch_size
    slices = self._sharding.addressable_devices_indices_map((1, self._batch_size)).values()
    bounds = [index[1].indices(self._batch_size)[:2] for index in slices]
    first, last = min(start for start, _ in bounds), max(stop for _, stop in bounds)
    size = last - first
    if self._batch_size % size or first % size:  # an odd layout of devices: read all rows
      first, size = 0, self._batch_size
    self._first, self._host, self._hosts = first, first // size, self._batch_size // size

  def train(self, step: int, count: int) -> Batch:
    """Batches `step` ... `step + count - 1`, stacked to [capacity, batch, ...]; what is left over repeats the last."""
    batches = [self._stream.batch(step + i, self._host, self._hosts) for i in range(count)]
    return self._stack(batches + batches[-1:] * (self._capacity - count))

  def validation(self) -> Batch:
    """The whole validation set, stacked to [batches, batch, ...]."""
    return self._stack(self._stream.validation(self._host, self._hosts))

  def _stack(self, batches: list[Batch]) -> Batch:
    return jax.tree.map(lambda *arrays: self._put(np.stack(arrays)), *batches)

  def _put(self, local: np.ndarray) -> jax.Array:
    if self._hosts == 1 and jax.process_count() == 1:
      return jax.device_put(local, self._sharding)

    def rows(index: tuple[Any, ...]) -> np.ndarray:
      start, stop, _ = index[1].indices(self._batch_size)
      return local[index[0], start - self._first : stop - self._first]

    shape = (local.shape[0], self._batch_size, *local.shape[2:])
    return jax.make_array_from_callback(shape, self._sharding, rows)
