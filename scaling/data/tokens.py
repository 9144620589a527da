"""The token store: a corpus as memory-mapped ids with document offsets, made once per tokenizer.

Each split is one stream of tokens: end-of-text, a document, end-of-text, the next, ..., and end-of-text last.
Documents come in the order of their hashes, which is as good as random and the same on every machine, so a prefix of
the stream is a random sample of documents and a shorter prefix is a subset of a longer one.
"""

import dataclasses
import functools
import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaling import config
from scaling.data import cache, corpora, tokenizers
from scaling.errors import UserError

log = logging.getLogger(__name__)

VERSION = 1  # raise when the same text and tokenizer come to give other tokens
SPLITS = ('train', 'validation')

_SPAN = 4096  # tokens of a stretch of the evaluation set
_BATCH_CHARACTERS = 4_000_000  # tokenized at once


class Split(NamedTuple):
  """One stream of tokens.

  ids: uint16 or uint32 [tokens], memory-mapped.
  offsets: int64 [documents + 1], where each document's end-of-text stands, and that of the closing one.
  """

  ids: np.ndarray
  offsets: np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenStore:
  """A corpus's tokens, and which of them `data` trains and evaluates on.

  Attributes:
    data: the config that it was opened with.
    train, validation: all tokens of the splits.
    vocab_size, end_of_text: of the tokenizer.
    token_bytes: int64 [vocab_size], UTF-8 bytes that each id stands for; 0 for end-of-text.
    fingerprint: content hash of all of it.
  """

  data: config.Data
  train: Split
  validation: Split
  vocab_size: int
  end_of_text: int
  token_bytes: np.ndarray
  fingerprint: str

  @property
  def training_ids(self) -> np.ndarray:
    """The train tokens that may be seen: the first `data.unique_tokens`, or all."""
    return self.train.ids[: self.data.unique_tokens]

  @property
  def validation_targets(self) -> int:
    """How many tokens an evaluation predicts: `data.validation_tokens`, or all there are but the first."""
    return min(self.data.validation_tokens, len(self.validation.ids) - 1)

  @functools.cached_property
  def validation_spans(self) -> list[tuple[int, int]]:
    """(first target's position, targets) of the stretches of the validation stream that are evaluated.

    Stretches of 4,096 tokens (or one sequence, where that is longer), evenly spaced so that all documents have their
    share. For sequences up to that length the targets are the same whatever the sequence length and batch size.
    """
    have, wanted = len(self.validation.ids) - 1, self.validation_targets
    length = max(_SPAN, self.data.sequence_length)
    count = -(-wanted // length)
    if count * length > have:
      return [(1, wanted)]
    starts = [1 + i * have // count for i in range(count)]
    return [(start, min(length, wanted - i * length)) for i, start in enumerate(starts)]

  @property
  def validation_positions(self) -> np.ndarray:
    """int64 [validation_targets], the places in the validation stream of the tokens that are predicted."""
    return np.concatenate([np.arange(start, start + count) for start, count in self.validation_spans])

  @functools.cached_property
  def validation_bytes(self) -> int:
    """UTF-8 bytes of exactly those tokens."""
    return int(self.token_bytes[self.validation.ids[self.validation_positions]].sum())

  @property
  def validation_bytes_per_token(self) -> float:
    return self.validation_bytes / self.validation_targets

  def bits_per_byte(self, loss: float) -> float:
    """Bits per byte of the evaluated text, from its loss in nats per token."""
    return loss / np.log(2) / self.validation_bytes_per_token


def open_store(data: config.Data) -> TokenStore:
  """Opens the tokens of `data`, made first where they are missing or damaged.

  Raises:
    UserError: the corpus or tokenizer cannot be had (see `corpora` and `tokenizers`), has too few tokens for `data`,
      or is no longer the text whose fingerprint `data` holds.
  """
  folder, meta = _entry(data)
  if data.fingerprint not in (None, meta['fingerprint']):
    raise UserError(
      f'data.corpus={data.corpus!r} has changed since this run was planned: its tokens have fingerprint '
      f'{meta["fingerprint"]} instead of {data.fingerprint}; restore the text, or plan the run again'
    )
  check_enough(data, meta)
  splits = {}
  for split in SPLITS:
    ids = np.memmap(folder / f'{split}.ids', dtype=meta['dtype'], mode='r')
    splits[split] = Split(ids, np.load(folder / f'{split}.offsets.npy'))
  return TokenStore(
    data=data,
    vocab_size=meta['vocab_size'],
    end_of_text=meta['end_of_text'],
    token_bytes=np.load(folder / 'token_bytes.npy'),
    fingerprint=meta['fingerprint'],
    **splits,
  )


def describe(data: config.Data) -> dict[str, Any]:
  """What is known of the tokens of `data` without opening them: vocab_size, fingerprint, tokens of each split, ...

  Raises:
    UserError: as `open_store`, but for a changed text.
  """
  _, meta = _entry(data)
  check_enough(data, meta)
  return meta


def check_enough(data: config.Data, meta: dict[str, Any]) -> None:
  """Raises UserError where the train split is shorter than a sequence or than `data.unique_tokens`."""
  have = meta['train_tokens']
  if have < data.sequence_length + 1:
    raise UserError(
      f'data.corpus={data.corpus!r} has {have} training tokens: too few for one sequence of '
      f'{data.sequence_length} and its target; take more text or a smaller data.sequence_length'
    )
  if data.unique_tokens is not None and data.unique_tokens > have:
    raise UserError(
      f'data.unique_tokens={data.unique_tokens} is more than the {have} training tokens of '
      f'data.corpus={data.corpus!r}: take at most {have}, or none for all'
    )


def _entry(data: config.Data) -> tuple[Path, dict[str, Any]]:
  tokenizers.check_name(data.tokenizer)
  found = corpora.fingerprint(data.corpus)
  key = cache.digest('tokens', VERSION, tokenizers.VERSION, found, data.tokenizer, data.validation_fraction)
  folder = cache.root() / 'tokens' / f'{data.tokenizer}-{key}'
  what = f'the tokens of {data.corpus} ({data.tokenizer})'
  return folder, cache.entry(folder, functools.partial(_build, data), what)


def _build(data: config.Data, folder: Path) -> dict[str, Any]:
  corpus = corpora.prepare(data.corpus)
  try:
    return _tokenize(data, corpus, folder)
  except corpora.DamagedError as e:
    log.warning('the corpus %s in the cache (%s) is damaged: %s; building it again', corpus.name, corpus.folder, e)
    shutil.rmtree(corpus.folder, ignore_errors=True)
    return _tokenize(data, corpora.prepare(data.corpus), folder)


def _tokenize(data: config.Data, corpus: corpora.Corpus, folder: Path) -> dict[str, Any]:
  """Writes both splits; the meta data's fingerprint is a hash of all that was written."""
  indices = dict(zip(SPLITS, corpus.split(data.validation_fraction), strict=True))
  _refuse_empty(data, corpus, indices)
  tokenizer = tokenizers.get(data.tokenizer, corpus, data.validation_fraction)
  lengths = np.array([len(b) for b in tokenizer.token_bytes], np.int64)
  np.save(folder / 'token_bytes.npy', lengths)
  written = hashlib.sha256(lengths.tobytes())
  counts = {}
  for split in SPLITS:
    offsets, tokens = [], 0
    with (folder / f'{split}.ids').open('wb') as file:
      for ids in _stream(tokenizer, corpus.texts(indices[split])):
        offsets.append(tokens)
        tokens += len(ids)
        written.update(ids)
        file.write(ids)
    offsets = np.array(offsets, np.int64)
    np.save(folder / f'{split}.offsets.npy', offsets)
    written.update(offsets)
    counts |= {f'{split}_tokens': tokens, f'{split}_documents': len(indices[split])}
  return {
    'corpus': corpus.name,
    'corpus_fingerprint': corpus.fingerprint,
    'tokenizer': tokenizer.name,
    'vocab_size': tokenizer.vocab_size,
    'end_of_text': tokenizer.end_of_text,
    'dtype': tokenizer.dtype.str,
    'fingerprint': written.hexdigest()[:24],
    **counts,
  }


def _stream(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
  """Ids of each document with end-of-text before it, then the closing end-of-text."""
  mark = np.array([tokenizer.end_of_text], tokenizer.dtype)
  for batch in _batches(texts):
    for ids in tokenizer.encode_batch(batch):
      yield np.concatenate([mark, ids])
  yield mark


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
  batch, size = [], 0
  for text in texts:
    batch.append(text)
    size += len(text)
    if size >= _BATCH_CHARACTERS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _refuse_empty(data: config.Data, corpus: corpora.Corpus, indices: dict[str, np.ndarray]) -> None:
  if len(corpus) == 1:
    raise UserError(
      f'data.corpus={data.corpus!r} is one document, and documents are split whole into train and validation: '
      'give several files, or lines of a .jsonl'
    )
  for split in SPLITS:
    if not len(indices[split]):
      low, high = corpus.usable_fractions()
      raise UserError(
        f'the {split} split of data.corpus={data.corpus!r} is empty: its {len(corpus)} documents need '
        f'data.validation_fraction between {low:.3g} and {high:.3g}, and it is {data.validation_fraction}'
      )
