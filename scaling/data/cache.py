"""The cache on disk: where it is, one builder at a time, whole or not there at all.

An entry is a folder with a `meta.json` that lists every other file with its size and SHA-256 digest. It is built in
a temporary folder, flushed, and renamed into place under a lock file, so that a reader sees a whole entry or none.
Whatever is found damaged (wrong size, wrong digest, no readable `meta.json`) is built again, and one log line says so.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scaling.errors import UserError

log = logging.getLogger(__name__)

META = 'meta.json'
# Entries up to this size are hashed in full at each opening (2 GB/s with the CPU's SHA instructions); above it the
# digests are trusted while every file still has the size and modification time it was built with.
FULL_CHECK_BYTES = 256 << 20

_verified: dict[Path, tuple] = {}  # entry -> its files' sizes and times when this process last hashed them


def root() -> Path:
  """The cache's folder: the environment variable SCALING_CACHE, or ~/.cache/scaling."""
  return Path(os.environ.get('SCALING_CACHE') or Path.home() / '.cache' / 'scaling').expanduser().absolute()


def digest(*parts: Any) -> str:
  """The first 24 hexadecimal digits of the SHA-256 of the parts' JSON."""
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
  """Turns a full, read-only or forbidden disk into a UserError that names the cache and what to do."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    number = getattr(e, 'errno', None)
    if number in (errno.ENOSPC, errno.EDQUOT) or 'No space left on device' in str(e):
      raise UserError(
        f'no space left on the disk of the cache {root()}: free some, or set SCALING_CACHE to a folder elsewhere'
      ) from e
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
      raise _unwritable(e) from e
    raise


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
  """Holds an exclusive lock on `path`.lock; other processes wait. The system frees it when a holder dies."""
  _make_folder(path.parent)
  with Path(f'{path}.lock').open('a') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def write_atomic(path: Path, text: str) -> None:
  """Writes a small file whole: temporary file, flush to disk, rename."""
  _make_folder(path.parent)
  part = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with part.open('w', encoding='utf-8') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    part.rename(path)
  finally:
    part.unlink(missing_ok=True)


def read_json(path: Path) -> Any | None:
  """The JSON in a file; None where there is none or it does not parse."""
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None


def entry(path: Path, build: Callable[[Path], dict[str, Any]], what: str) -> dict[str, Any]:
  """The meta data of the entry at `path`, built first where it is missing or damaged.

  Args:
    path: folder of the entry; its name should be a content hash of all that `build` depends on.
    build: fills the empty folder it is given with files and returns what `meta.json` should hold.
    what: names the entry in the log.

  Raises:
    UserError: the disk is full or the cache cannot be written.
  """
  meta, damage = check(path)
  if meta is not None:
    return meta
  with disk_errors(), lock(path):
    meta, damage = check(path)  # another process may have built it while this one waited
    if meta is not None:
      return meta
    if damage:
      log.warning('%s in the cache (%s) is damaged: %s; building it again', what, path, damage)
    for stale in path.parent.glob(f'{path.name}.part-*'):  # left by a process that was killed
      shutil.rmtree(stale, ignore_errors=True)
    part = path.with_name(f'{path.name}.part-{os.getpid()}')
    part.mkdir(parents=True)
    try:
      meta = {**build(part), 'files': {}}
      for file in sorted(p for p in part.rglob('*') if p.is_file()):
        meta['files'][file.relative_to(part).as_posix()] = _seal(file)
      write_atomic(part / META, json.dumps(meta, indent=1, sort_keys=True))
      if path.exists():
        shutil.rmtree(path)
      part.rename(path)
      _sync_folder(path.parent)
    finally:
      shutil.rmtree(part, ignore_errors=True)
  _verified.pop(path, None)
  return meta


def check(path: Path) -> tuple[dict[str, Any] | None, str]:
  """(meta data, '') of a sound entry, (None, '') where there is none, (None, what is wrong) of a damaged one."""
  if not path.exists():
    return None, ''
  meta = read_json(path / META)
  if not isinstance(meta, dict) or not isinstance(meta.get('files'), dict):
    return None, f'{META} is missing or unreadable'
  stats = {}
  for name, (size, _, _) in meta['files'].items():
    try:
      stat = (path / name).stat()
    except OSError:
      return None, f'{name} is missing'
    if stat.st_size != size:
      return None, f'{name} has {stat.st_size} bytes instead of {size}'
    stats[name] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
  signature = tuple(sorted(stats.items()))
  if _verified.get(path) == signature:
    return meta, ''
  total = sum(size for size, _, _ in meta['files'].values())
  for name, (_, modified, expected) in meta['files'].items():
    trusted = total > FULL_CHECK_BYTES and stats[name][1] == modified
    if not trusted and _file_digest(path / name) != expected:
      return None, f'{name} has other content than was written'
  _verified[path] = signature
  return meta, ''


def _make_folder(folder: Path) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    if e.errno == errno.ENOSPC:
      raise
    raise _unwritable(e) from e


def _unwritable(e: Exception) -> UserError:
  reason = getattr(e, 'strerror', None) or e
  return UserError(f'cannot write to the cache {root()} ({reason}): set SCALING_CACHE to a folder that can be written')


def _seal(file: Path) -> tuple[int, int, str]:
  with file.open('rb') as f:
    os.fsync(f.fileno())
  stat = file.stat()
  return stat.st_size, stat.st_mtime_ns, _file_digest(file)


def _file_digest(file: Path) -> str:
  with file.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def _sync_folder(folder: Path) -> None:
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
