"""Reads a table of runs from any format, and maps foreign columns with one SQL select list."""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import importers
from scaling.errors import UserError

# The schema that every reader aims at. Only what a law takes as input is required; any other column may follow.
SCHEMA = {
  'run_id': 'one value per training; rows of one run are not independent (intervals are clustered by it)',
  'name': 'what people call the run',
  'step': 'optimiser steps so far',
  'params': "parameters, in the counting that the law is about (a study's own is params_non_embedding)",
  'tokens': 'training tokens seen so far',
  'flops': 'training FLOPs so far',
  'loss': 'validation loss, nats per token',
  'final': 'true on the last row of a run',
  'held_out': 'true where the row is kept from fitting, to check predictions',
  'diverged': 'true where the loss stopped being finite',
}

# Before pandas 3.1 the default parser was off by one unit in the last place; fits are compared to 1e-9.
_EXACT = {'low_memory': False} | ({'float_precision': 'round_trip'} if pd.__version__ < '3.1' else {})

FORMATS = '.csv, .tsv, .parquet, .json, .jsonl, a TensorBoard event file, or a folder'


def read(source: str | Path, select: str | None = None, where: str | None = None) -> pd.DataFrame:
  """A table of runs, one row per evaluation or per run.

  Args:
    source: a CSV, TSV, Parquet, JSON or JSON-lines file (records, or exports of Weights & Biases and MLflow),
      a TensorBoard event file, an output folder of a study (its `runs.parquet`), a folder of event files, or an
      MLflow file store.
    select: one SQL select list over the table, such as `"Model Size" AS params, C / 6 / "Model Size" AS tokens, loss`.
    where: an SQL condition on the rows, such as `tokens >= 1e6`.

  Raises:
    UserError: the source is missing, unreadable or empty, or the SQL does not fit the table.
  """
  path = Path(source).expanduser()
  frame = _read_any(path)
  if frame.empty or not len(frame.columns):
    raise UserError(f'{path} holds no rows')
  frame.columns = [str(c).strip() for c in frame.columns]
  if select or where:
    frame = query(frame, select or '*', where)
    if frame.empty:
      raise UserError(f'no row of {path} is left' + (f' where {where}' if where else ''))
  return frame


def query(frame: pd.DataFrame, select: str = '*', where: str | None = None) -> pd.DataFrame:
  """`SELECT select FROM frame WHERE where`, by DuckDB, which sees this table and nothing else: no file, no network."""
  import duckdb

  text = f'SELECT {select}\nFROM runs' + (f'\nWHERE {where}' if where else '')
  given = f'--select {select!r}' if not where else f'--select {select!r} --where {where!r}'
  with duckdb.connect(':memory:') as db:
    db.register('runs', _plain(frame))
    for setting in (
      "temp_directory=''",
      'python_enable_replacements=false',
      'autoinstall_known_extensions=false',
      'autoload_known_extensions=false',
      'enable_external_access=false',
      'threads=1',
      'lock_configuration=true',
    ):
      db.execute(f'SET {setting}')
    try:
      statements = db.extract_statements(text)
      if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise UserError(f'{given}: write one select list, such as \'"Model Size" AS params, loss\'')
      cursor = db.execute(statements[0])
      names = [d[0] for d in cursor.description]
      result = cursor.df()
    except duckdb.Error as error:
      raise UserError(f'{given}: {_sql_error(str(error), frame.columns)}') from None
  twice = sorted({c for c in names if names.count(c) > 1})
  if twice:
    raise UserError(f'{given}: it makes two columns named {twice[0]!r}')
  return result


def require(frame: pd.DataFrame, columns: Iterable[str], source: str = 'the table') -> None:
  """Raises UserError where a column is missing (naming what is there and what is nearest) or holds no numbers."""
  for column in columns:
    if column not in frame.columns:
      raise UserError(
        f'{source} has no column {column!r}: {_near(column, frame.columns)}'
        f'; map it with --select \'"its name" AS {column}, ...\''
      )
    if not pd.api.types.is_numeric_dtype(frame[column]):
      bad = frame[column][pd.to_numeric(frame[column], errors='coerce').isna()]
      example = f'{bad.iloc[0]!r} in row {bad.index[0]}' if len(bad) else 'text'
      raise UserError(f'column {column!r} of {source} must hold numbers, and holds {example}')


def finals(frame: pd.DataFrame) -> pd.DataFrame:
  """The last row of each run: rows marked `final`, else the furthest row of each `run_id`, else all rows."""
  if 'final' in frame.columns and frame['final'].any():
    return frame[frame['final'].fillna(False).astype(bool)]
  if 'run_id' in frame.columns:
    for by in ('step', 'tokens', 'flops'):
      if by in frame.columns:
        known = frame[frame[by].notna()]
        return known.loc[known.groupby('run_id', sort=False)[by].idxmax().sort_values()]
  return frame


def _read_any(path: Path) -> pd.DataFrame:
  if not path.exists():
    near = (
      difflib.get_close_matches(path.name, [p.name for p in path.parent.glob('*')], n=1) if path.parent.is_dir() else []
    )
    raise UserError(f'{path} does not exist' + (f': did you mean {path.parent / near[0]}?' if near else ''))
  try:
    return _read_folder(path) if path.is_dir() else _read_file(path)
  except UserError:
    raise
  except Exception as error:  # the parsers of these formats raise a dozen kinds
    reason = ' '.join(str(error).split())[:200]
    raise UserError(f'{path} could not be read as {path.suffix or "a table"}: {reason}') from None


def _read_folder(path: Path) -> pd.DataFrame:
  if (path / 'runs.parquet').exists():
    return pd.read_parquet(path / 'runs.parquet')
  if (path / 'study.json').exists():
    raise UserError(f'{path} is a study without results yet (no runs.parquet): repeat `scaling run`')
  if any(path.rglob('*tfevents*')):
    return importers.tensorboard(path)
  if any(path.rglob('meta.yaml')):
    return importers.mlflow_store(path)
  tables = sorted(p for p in path.iterdir() if p.suffix in ('.csv', '.tsv', '.parquet', '.json', '.jsonl', '.ndjson'))
  if len(tables) == 1:
    return _read_file(tables[0])
  if tables:
    raise UserError(f'{path} holds {len(tables)} tables: name one, such as {tables[0]}')
  raise UserError(f'{path} holds no table: give {FORMATS}')


def _read_file(path: Path) -> pd.DataFrame:
  if path.stat().st_size == 0:
    raise UserError(f'{path} is empty')
  kind = path.suffix.lower()
  if 'tfevents' in path.name:
    return importers.tensorboard(path)
  if kind in ('.parquet', '.pq'):
    return pd.read_parquet(path)
  if kind in ('.csv', '.tsv'):
    frame = pd.read_csv(path, sep='\t' if kind == '.tsv' else ',', **_EXACT)
    if len(frame.columns) == 1 and ';' in str(frame.columns[0]):
      frame = pd.read_csv(path, sep=';', **_EXACT)
    return importers.adapt(frame)
  if kind in ('.jsonl', '.ndjson'):
    return importers.records(_json_lines(path))
  if kind == '.json':
    value = json.loads(path.read_text(encoding='utf-8'))
    if isinstance(value, Mapping) and all(isinstance(v, list) for v in value.values()):
      return pd.DataFrame(value)
    return importers.records(value if isinstance(value, list) else [value])
  raise UserError(f'{path}: cannot tell a table from {kind or "no extension"!r}: give {FORMATS}')


def _json_lines(path: Path) -> list[dict]:
  rows = []
  lines = path.read_text(encoding='utf-8').split('\n')
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number == len(lines):  # a writer was killed inside its last line
        break
      raise UserError(f'{path}, line {number}: {error.msg}') from None
    if not isinstance(rows[-1], Mapping):
      raise UserError(f'{path}, line {number}: a row must be an object, such as {{"params": 1e6, "loss": 3.2}}')
  return rows


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
  """DuckDB takes numbers, booleans and text; anything else goes in as JSON text."""
  out = frame.copy()
  for column in out.columns:
    if out[column].dtype == object and any(isinstance(v, dict | list | np.ndarray) for v in out[column]):
      out[column] = [json.dumps(v, default=str) for v in out[column]]
  return out


def _near(name: str, columns: Iterable[str], cutoff: float = 0.5) -> str:
  columns = [str(c) for c in columns]
  lowered = {c.lower(): c for c in columns}
  near = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, n=2, cutoff=cutoff)]
  inside = [c for c in columns if name.lower() in c.lower() and c not in near][: 2 - len(near)]
  shown = columns if len(columns) <= 12 else [*columns[:12], f'and {len(columns) - 12} more']
  there = 'there is ' + ', '.join(shown)
  return there + (f' (nearest: {", ".join(near + inside)})' if near or inside else '')


def _sql_error(message: str, columns: Iterable[str]) -> str:
  """DuckDB's message on one line, with the columns that are there where one was not found."""
  first = ' '.join(message.split('LINE ')[0].split())
  if 'Referenced column' in first and '"' in first:
    name = first.split('"')[1]
    return f'no column {name!r}: {_near(name, columns)}'
  if 'disabled' in first or ('does not exist' in first and 'Table' in first):
    first += ' (the select list sees this table only)'
  return first[:300]
