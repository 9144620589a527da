"""Readers of other tools' records: Weights & Biases, MLflow and TensorBoard, each into one tidy table.

A tidy table has one row per evaluation (or per run, where the export holds only summaries); `run_id` names the run,
`step` the step, and hyperparameters and metrics are columns under their own names.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.errors import UserError

_RENAMED = {'_step': 'step', 'global_step': 'step', 'Step': 'step', 'tags.mlflow.runName': 'name'}
_WANDB_PARTS = ('config', 'summary', 'summary_metrics', 'summaryMetrics')


def adapt(frame: pd.DataFrame) -> pd.DataFrame:
  """A CSV export of Weights & Biases or MLflow as a tidy table; any other table as it is."""
  columns = [str(c) for c in frame.columns]
  frame = frame.set_axis(columns, axis=1)
  pairs = [c for c in columns if ' - ' in c and not c.endswith(('__MIN', '__MAX'))]
  if pairs and any(f'{c}__MIN' in columns for c in pairs):
    return _wandb_chart(frame, pairs)
  if any(c.startswith('metrics.') for c in columns) and 'run_id' in columns:
    return _rename(_unprefixed(frame, ('metrics.', 'params.')))
  if 'Name' in columns and ({'State', 'Runtime', 'Created'} & set(columns)):  # a runs table of Weights & Biases
    return frame.rename(columns={'Name': 'name'} | ({} if 'run_id' in columns else {'ID': 'run_id'}))
  return frame


def records(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
  """JSON records as a table; nested objects become dotted columns, as `config.width`.

  Weights & Biases' API gives `{"id", "name", "config": {...}, "summary": {...}}` and histories with `_step`: config and
  summary lose their prefix where no name is taken twice.
  """
  rows = [dict(_flat(_wandb_values(row))) for row in rows]
  frame = pd.DataFrame(rows)
  prefixes = tuple(f'{p}.' for p in _WANDB_PARTS if any(c.startswith(f'{p}.') for c in frame.columns))
  if len(prefixes) and ('id' in frame.columns or 'name' in frame.columns):
    frame = _unprefixed(frame, prefixes)
    if 'id' in frame.columns and 'run_id' not in frame.columns:
      frame = frame.rename(columns={'id': 'run_id'})
  if '_step' in frame.columns:
    frame = frame.drop(columns=[c for c in ('_timestamp', '_runtime') if c in frame.columns])
  return _rename(frame)


def mlflow_store(folder: Path) -> pd.DataFrame:
  """An MLflow file store (`mlruns/`): `metrics/NAME` holds lines of `milliseconds value step`, `params/NAME` a value."""
  runs = []
  for meta in sorted(folder.rglob('meta.yaml')):
    run = meta.parent
    metrics = {
      p.relative_to(run / 'metrics').as_posix(): p for p in sorted((run / 'metrics').rglob('*')) if p.is_file()
    }
    if not metrics:
      continue
    series = {}
    for name, path in metrics.items():
      table = [line.split() for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
      steps = [int(r[2]) if len(r) > 2 else 0 for r in table]
      values = pd.Series([float(r[1]) for r in table], index=pd.Index(steps, name='step'), dtype=float)
      series[name] = values[~values.index.duplicated(keep='last')]
    frame = pd.DataFrame(series).sort_index().reset_index()
    for path in sorted((run / 'params').rglob('*')):
      if path.is_file():
        frame[path.relative_to(run / 'params').as_posix()] = _number(path.read_text(encoding='utf-8').strip())
    title = run / 'tags' / 'mlflow.runName'
    frame.insert(0, 'name', title.read_text(encoding='utf-8').strip() if title.exists() else run.name)
    frame.insert(0, 'run_id', run.name)
    runs.append(frame)
  if not runs:
    raise UserError(f'{folder} holds MLflow experiments without a metric')
  return pd.concat(runs, ignore_index=True)


def tensorboard(path: Path) -> pd.DataFrame:
  """Scalars of TensorBoard event files: a run is a folder, a tag is a column. A torn last record is left out.

  Hyperparameters are not in the scalars: write them as scalars, or join them with `--select` from the run's name.
  """
  files = [path] if path.is_file() else sorted(path.rglob('*tfevents*'))
  root = path.parent if path.is_file() else path
  runs: dict[str, dict[int, dict[str, float]]] = {}
  for file in files:
    name = file.parent.relative_to(root).as_posix()
    name = file.parent.resolve().name if name == '.' else name
    rows = runs.setdefault(name, {})
    for step, tag, value in _scalars(file):
      rows.setdefault(step, {})[tag] = value
  frames = [
    pd.DataFrame.from_dict(rows, orient='index').rename_axis('step').sort_index().reset_index().assign(run_id=name)
    for name, rows in runs.items()
    if rows
  ]
  if not frames:
    raise UserError(f'{path} holds TensorBoard events without a scalar')
  frame = pd.concat(frames, ignore_index=True)
  return frame[['run_id', 'step', *[c for c in frame.columns if c not in ('run_id', 'step')]]]


def _scalars(path: Path) -> Iterator[tuple[int, str, float]]:
  """(step, tag, value) of each scalar; the fields' numbers are those of tensorflow's event.proto and summary.proto."""
  for payload in _tfrecords(path):
    step, summary = 0, None
    for field, value in _protobuf(payload):
      if field == 2:
        step = value - (1 << 64) if value >= 1 << 63 else value
      elif field == 5:
        summary = value
    if summary is None:
      continue
    for field, value in _protobuf(summary):
      if field == 1:
        parts = dict(_protobuf(value))
        scalar = _scalar(parts)
        if scalar is not None and 1 in parts:
          yield step, parts[1].decode('utf-8', 'replace'), scalar


def _scalar(parts: Mapping[int, Any]) -> float | None:
  if 2 in parts:  # simple_value, of the first summary writers
    return struct.unpack('<f', parts[2])[0]
  if 8 not in parts:
    return None
  tensor = dict(_protobuf(parts[8]))
  kinds = {1: ('<f4', 5), 2: ('<f8', 6), 3: ('<i4', 7), 9: ('<i8', 10)}  # DataType -> (numpy type, *_val field)
  if tensor.get(1) not in kinds:
    return None
  dtype, field = kinds[tensor[1]]
  raw = tensor.get(4, tensor.get(field))
  if isinstance(raw, bytes):
    width = np.dtype(dtype).itemsize
    return float(np.frombuffer(raw, dtype)[0]) if len(raw) == width else None
  return None if raw is None else float(raw)


def _tfrecords(path: Path) -> Iterator[bytes]:
  """Payloads of a TFRecord file: length (8 bytes), its checksum (4), payload, its checksum (4)."""
  data = path.read_bytes()
  at = 0
  while at + 12 <= len(data):
    (length,) = struct.unpack_from('<Q', data, at)
    if struct.unpack_from('<I', data, at + 8)[0] != _masked_crc32c(data[at : at + 8]):
      raise UserError(f'{path} is not a TensorBoard event file, or it is damaged at byte {at}')
    if at + 16 + length > len(data):
      return
    yield data[at + 12 : at + 12 + length]
    at += 16 + length


def _protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
  """(field number, value) pairs of one message: whole numbers for varints, bytes for everything else."""
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    wire = key & 7
    if wire == 0:
      value, at = _varint(data, at)
    elif wire in (1, 5):
      size = 8 if wire == 1 else 4
      value, at = data[at : at + size], at + size
    elif wire == 2:
      size, at = _varint(data, at)
      value, at = data[at : at + size], at + size
    else:
      return
    yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while at < len(data):
    byte = data[at]
    at += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      break
    shift += 7
  return value, at


def _crc_table() -> list[int]:
  table = []
  for n in range(256):
    for _ in range(8):
      n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
    table.append(n)
  return table


_CRC = _crc_table()


def _masked_crc32c(data: bytes) -> int:
  """CRC-32C, rotated and offset as the TFRecord format stores it."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
  crc ^= 0xFFFFFFFF
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _wandb_chart(frame: pd.DataFrame, pairs: list[str]) -> pd.DataFrame:
  """A chart's CSV: one column `RUN - METRIC` per run (with __MIN and __MAX beside it) over a shared first column."""
  axis = frame.columns[0]
  parts: dict[str, dict[str, pd.Series]] = {}
  for column in pairs:
    run, metric = column.rsplit(' - ', 1)
    parts.setdefault(run, {})[metric] = pd.to_numeric(frame[column], errors='coerce')
  frames = [
    pd.DataFrame({'run_id': run, 'name': run, _RENAMED.get(axis, axis): frame[axis], **metrics}).dropna(
      subset=list(metrics), how='all'
    )
    for run, metrics in parts.items()
  ]
  return pd.concat(frames, ignore_index=True)


def _wandb_values(row: Mapping[str, Any]) -> dict[str, Any]:
  """Weights & Biases stores a config as {"key": {"value": v, "desc": ...}} in its files, and parts as JSON text in its API."""
  out = dict(row)
  for part in _WANDB_PARTS:
    value = out.get(part)
    if isinstance(value, str) and value.startswith('{'):
      value = json.loads(value)
    if isinstance(value, Mapping):
      out[part] = {k: v['value'] if isinstance(v, Mapping) and 'value' in v else v for k, v in value.items()}
  return out


def _flat(row: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in row.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _unprefixed(frame: pd.DataFrame, prefixes: tuple[str, ...]) -> pd.DataFrame:
  """Drops prefixes from column names where that makes no name twice."""
  short = {c: c[len(p) :] for c in frame.columns for p in prefixes if c.startswith(p)}
  taken = list(short.values()) + [c for c in frame.columns if c not in short]
  frame = frame.rename(columns={c: s for c, s in short.items() if taken.count(s) == 1})
  for column in short.values():
    if column in frame.columns and not pd.api.types.is_numeric_dtype(frame[column]):
      numbers = pd.to_numeric(frame[column], errors='coerce')
      if numbers.notna().sum() == frame[column].notna().sum():
        frame[column] = numbers
  return frame


def _rename(frame: pd.DataFrame) -> pd.DataFrame:
  return frame.rename(columns={k: v for k, v in _RENAMED.items() if k in frame.columns and v not in frame.columns})


def _number(text: str) -> Any:
  try:
    return float(text)
  except ValueError:
    return text
