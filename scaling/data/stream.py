"""Batches: batch k is a pure function of (seed, k), by random access, with no iterator state.

The training tokens are cut into windows of `sequence_length` inputs and as many targets, one token apart, so that each
epoch predicts each token once. Every epoch visits all windows in a new order, given by grain's `index_shuffle`: a
keyed permutation that is evaluated index by index. So any host, worker or resumed process makes any batch by itself.
"""

import functools
import hashlib
from typing import NamedTuple

import numpy as np

from scaling import config
from scaling.data.tokens import TokenStore
from scaling.errors import UserError

_ROUNDS = 4  # of the cipher in index_shuffle: what grain itself takes


class Batch(NamedTuple):
  """Tokens of a batch; inputs are `tokens_bt[:, :-1]`, targets `tokens_bt[:, 1:]`.

  tokens_bt: int32 [batch, sequence_length + 1].
  segments_bt: int32, of the same shape: numbers a row's documents from 0, each beginning at its end-of-text.
    None where attention may cross documents.
  mask_bt: bool [batch, sequence_length], the targets that count; None: all do, as in every training batch.
  """

  tokens_bt: np.ndarray
  segments_bt: np.ndarray | None = None
  mask_bt: np.ndarray | None = None


class Stream:
  """The batches of one run.

  Args:
    store: the tokens.
    data: batch size, sequence length, document mask, the limit on unique tokens.
    seed: of the order, unless `data.order_seed` is set.

  Attributes:
    windows: sequences in an epoch; the fewer than `sequence_length` tokens left at the end are not seen.
    tokens_per_epoch: targets in an epoch.
  """

  def __init__(self, store: TokenStore, data: config.Data, seed: int) -> None:
    self.store, self.data = store, data
    self.seed = seed if data.order_seed is None else data.order_seed
    self._ids = store.train.ids[: data.unique_tokens]
    self.windows = (len(self._ids) - 1) // data.sequence_length
    if self.windows < 1:
      raise UserError(f'{len(self._ids)} training tokens are too few for data.sequence_length={data.sequence_length}')
    self.tokens_per_epoch = self.windows * data.sequence_length

  def batch(self, step: int, host: int = 0, hosts: int = 1) -> Batch:
    """The rows of batch `step` that `host` of `hosts` feeds: a contiguous block, in the order of the hosts.

    Raises:
      UserError: the hosts do not divide the batch.
    """
    rows = _rows(self.data.batch_size, host, hosts)
    first = step * self.data.batch_size
    return self._read(np.array([self.window(first + row) for row in rows], np.int64))

  def window(self, index: int) -> int:
    """Which window is the run's sequence number `index`, counted over all batches and epochs."""
    epoch, index = divmod(index, self.windows)
    if self.windows == 1:
      return 0
    return _index_shuffle()(index, max_index=self.windows - 1, seed=_epoch_seed(self.seed, epoch), rounds=_ROUNDS)

  def validation(self, host: int = 0, hosts: int = 1) -> list[Batch]:
    """The fixed evaluation set: each of `store.validation_positions` is a target once, in batches of training shape.

    A row holds consecutive text. Where targets do not fill a row or a batch, all batches carry a mask, and the tokens
    outside it mean nothing.
    """
    size, length = self.data.batch_size, self.data.sequence_length
    rows = [
      (start + k, min(length, count - k))
      for start, count in self.store.validation_spans
      for k in range(0, count, length)
    ]
    batches = -(-len(rows) // size)
    whole = len(rows) == batches * size and all(count == length for _, count in rows)
    rows += [(1, 0)] * (batches * size - len(rows))
    first_b, count_b = np.array(rows, np.int64).T
    out = []
    for number in range(batches):
      share = [number * size + row for row in _rows(size, host, hosts)]
      positions_bt = first_b[share, None] - 1 + np.arange(length + 1)
      positions_bt = np.minimum(positions_bt, len(self.store.validation.ids) - 1)
      tokens_bt = self.store.validation.ids[positions_bt].astype(np.int32)
      mask_bt = None if whole else np.arange(length) < count_b[share, None]
      out.append(Batch(tokens_bt, self._segments(tokens_bt), mask_bt))
    return out

  def _read(self, windows: np.ndarray) -> Batch:
    positions_bt = windows[:, None] * self.data.sequence_length + np.arange(self.data.sequence_length + 1)
    tokens_bt = self._ids[positions_bt].astype(np.int32)
    return Batch(tokens_bt, self._segments(tokens_bt))

  def _segments(self, tokens_bt: np.ndarray) -> np.ndarray | None:
    if not self.data.document_mask:
      return None
    starts_bt = tokens_bt == self.store.end_of_text  # text never encodes to it
    starts_bt[:, 0] = False  # the row's first document is number 0, whole or not
    return np.cumsum(starts_bt, axis=1, dtype=np.int32)


def _rows(batch_size: int, host: int, hosts: int) -> range:
  if batch_size % hosts:
    raise UserError(f'data.batch_size={batch_size} is not divisible by {hosts} hosts: take a multiple of {hosts}')
  share = batch_size // hosts
  return range(host * share, (host + 1) * share)


@functools.lru_cache(maxsize=64)
def _epoch_seed(seed: int, epoch: int) -> int:
  """32 bits for the order of one epoch; hashed, as seed + epoch would give seed 1 the second epoch of seed 0."""
  return int.from_bytes(hashlib.sha256(f'{seed}/{epoch}'.encode()).digest()[:4], 'big')


@functools.cache
def _index_shuffle():
  from grain.experimental import index_shuffle  # imports jax

  return index_shuffle
