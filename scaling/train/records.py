"""The files of a run directory: rows appended, results replaced whole, failures in one line.

config.json     what is trained and how
metrics.jsonl   one row per evaluation, one write each; readers keep the last row of a step
progress.json   where training is now, for status views
result.json     written once, when the run is done or has diverged
failure.json    why the last attempt ended, until the next one starts
log.txt         tracebacks
"""

import contextlib
import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from scaling.config import Execution, Run, from_dict, to_dict
from scaling.errors import UserError

CONFIG, METRICS, PROGRESS = 'config.json', 'metrics.jsonl', 'progress.json'
RESULT, FAILURE, LOG = 'result.json', 'failure.json', 'log.txt'


def write_json(path: Path, value: Any, durable: bool = True) -> None:
  """Replaces a file whole: temporary file, flush to disk, rename."""
  part = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with part.open('w', encoding='utf-8') as file:
      json.dump(value, file, allow_nan=False)
      file.write('\n')
      file.flush()
      if durable:
        os.fsync(file.fileno())
    part.rename(path)
    if durable:
      _sync_folder(path.parent)
  finally:
    part.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
  """The object in a file; None where there is no file, or no whole object in it."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None
  return value if isinstance(value, dict) else None


def result(run_dir: Path) -> dict[str, Any] | None:
  """The result of a finished run (status `done` or `diverged`), or None."""
  value = read_json(run_dir / RESULT)
  return value if value and value.get('status') in ('done', 'diverged') else None


def write_config(run_dir: Path, run: Run, execution: Execution) -> None:
  """Makes the directory a run's own. Raises UserError where it already holds another run."""
  run_dir.mkdir(parents=True, exist_ok=True)
  found = read_json(run_dir / CONFIG)
  if found and found.get('run_id') != run.run_id:
    raise UserError(f'{run_dir} holds run {found.get("run_id")}, and this is run {run.run_id}: take another directory')
  values = {'run_id': run.run_id, 'run': to_dict(run), 'execution': to_dict(execution)}
  if found != values:
    write_json(run_dir / CONFIG, values)


def read_config(run_dir: Path) -> tuple[Run, Execution]:
  """The run and execution of a directory. Raises UserError where there is none or it is not readable."""
  found = read_json(run_dir / CONFIG)
  if found is None or 'run' not in found:
    raise UserError(f'{run_dir / CONFIG} is missing or unreadable: scaling run and scaling train write it')
  return from_dict(Run, found['run']), from_dict(Execution, found.get('execution') or {}, 'execution.')


class Metrics:
  """The append-only rows of a run.

  after: the step training resumes from; later rows are dropped, as they will be written again.
  """

  def __init__(self, run_dir: Path, after: int) -> None:
    self.path = run_dir / METRICS
    rows = read_rows(self.path)
    self.rows = {row['step']: row for row in rows if row['step'] <= after}
    if rows != list(self.rows.values()) or _torn(self.path):
      part = self.path.with_name(f'.{self.path.name}.{os.getpid()}')
      with part.open('w', encoding='utf-8') as file:
        file.writelines(_line(row) for row in self.rows.values())
        file.flush()
        os.fsync(file.fileno())
      part.rename(self.path)
    self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

  def append(self, row: dict[str, Any]) -> None:
    """Adds a row in one write; a write cut short (a full disk) raises, and its torn line is dropped by readers."""
    data = _line(row).encode()
    if os.write(self._handle, data) != len(data):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
    self.rows[row['step']] = row

  def sync(self) -> None:
    os.fsync(self._handle)

  def close(self) -> None:
    os.close(self._handle)


def read_rows(path: Path) -> list[dict[str, Any]]:
  """The whole rows of a metrics file, in order; torn lines are passed over."""
  rows = []
  try:
    lines = path.read_bytes().split(b'\n')
  except FileNotFoundError:
    return rows
  for line in lines:
    with contextlib.suppress(ValueError):
      row = json.loads(line)
      if isinstance(row, dict) and isinstance(row.get('step'), int):
        rows.append(row)
  return rows


def progress(run_dir: Path, **values: Any) -> None:
  """Says where training is now; a reader sees a whole object. The file's age tells a stuck run from a live one."""
  write_json(run_dir / PROGRESS, {**values, 'time': time.time()}, durable=False)


def finite(value: float) -> float | None:
  """A number that JSON can hold, or None."""
  return value if math.isfinite(value) else None


def disk_is_full(error: BaseException) -> bool:
  """Whether an error, whatever library raised it, says that the disk is full."""
  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT) or 'No space left on device' in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _line(row: dict[str, Any]) -> str:
  return json.dumps(row, allow_nan=False) + '\n'


def _torn(path: Path) -> bool:
  """Whether the file ends inside a line, or holds a line that is not a row."""
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return False
  return bool(data) and (not data.endswith(b'\n') or data.count(b'\n') != len(read_rows(path)))


def _sync_folder(folder: Path) -> None:
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
