"""Run directories read back: rows of metrics, the state of a run, and one tidy table of a study.

A run directory holds `config.json`, append-only `metrics.jsonl`, `progress.json`, and at its end `result.json`, or
`failure.json` after a failed attempt; its files are written by scaling.train. It may have been cut at any byte by a kill: a line that is not whole
is left out, and of several rows of one step (a resumed run repeats some) the last counts.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling import config
from scaling.config import Run
from scaling.errors import UserError
from scaling.train import lease

PARAMETER_GROUPS = ('embedding', 'position', 'attention', 'mlp', 'norm', 'head', 'total', 'non_embedding')


def read_json(path: Path) -> dict[str, Any] | None:
  """The object in a JSON file, or None if there is no whole one."""
  try:
    value = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return None
  return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any) -> None:
  """Writes a whole file or none: to a temporary file, to disk, then renamed."""
  write_text(path, json.dumps(value, indent=1) + '\n')


def write_text(path: Path, text: str) -> None:
  """As `write_json`, for text."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  with temporary.open('w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
  """The rows of a `metrics.jsonl`, by step; torn or foreign lines are left out, the last row of a step is kept."""
  try:
    text = path.read_bytes()
  except OSError:
    return []
  rows = {}
  for line in text.split(b'\n'):
    try:
      row = json.loads(line)
    except ValueError:  # torn by a kill, or not UTF-8
      continue
    if isinstance(row, dict) and isinstance(row.get('step'), int):
      rows[row['step']] = row
  return [rows[step] for step in sorted(rows)]


@dataclasses.dataclass(frozen=True)
class State:
  """Where a run stands: 'done', 'diverged', 'running', 'failed', 'begun' or 'new'."""

  status: str
  step: int = 0
  steps: int = 0
  message: str = ''  # of a failure
  result: Mapping[str, Any] | None = None

  @property
  def finished(self) -> bool:
    """Nothing is owed: the run has its result, be it that it diverged."""
    return self.status in ('done', 'diverged')


def state(run_dir: Path, steps: int = 0) -> State:
  """The state of one run directory, from its files alone."""
  result = read_json(run_dir / 'result.json')
  if result and result.get('status') in ('done', 'diverged'):
    return State(result['status'], result.get('step', steps), steps, result=result)
  step = last_step(run_dir)
  if lease.live_holder(run_dir) is not None:
    return State('running', step, steps)
  failure = read_json(run_dir / 'failure.json')
  if failure is not None:
    return State('failed', step, steps, failure_line(failure))
  return State('begun' if step or (run_dir / 'checkpoints').is_dir() else 'new', step, steps)


def failure_line(failure: Mapping[str, Any]) -> str:
  """The one line that a failure.json says."""
  for key in ('error', 'message', 'line'):
    if failure.get(key):
      return str(failure[key]).strip().splitlines()[0]
  return 'failed'


def heartbeat(run_dir: Path) -> float | None:
  """When training in this directory last got further (seconds since 1970), or None if it never did."""
  beats = []
  for name in ('progress.json', 'metrics.jsonl'):
    try:
      beats.append((run_dir / name).stat().st_mtime)
    except OSError:
      continue
  return max(beats, default=None)


def last_step(run_dir: Path) -> int:
  """The last step known of, from the progress file or the metrics."""
  step = (read_json(run_dir / 'progress.json') or {}).get('step')
  rows = read_rows(run_dir / 'metrics.jsonl')
  return max(step if isinstance(step, int) else 0, rows[-1]['step'] if rows else 0)


def flatten(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'model': {'width': 64}} -> {'model.width': 64}."""
  out = {}
  for key, value in values.items():
    if isinstance(value, Mapping):
      out.update(flatten(value, f'{prefix}{key}.'))
    else:
      out[prefix + key] = value
  return out


def run_columns(run: Run, result: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """What identifies a run in a table: counts of parameters, the dials by short names, and each config path."""
  from scaling import ledger

  count = ledger.parameters(run.model)
  row = {f'params_{group}': getattr(count, group) for group in PARAMETER_GROUPS}
  row.update({key: value for key, value in (result or {}).items() if key.startswith('params_')})
  row.update(
    tokens_budget=run.data.tokens,
    learning_rate_peak=run.optim.learning_rate,
    schedule=run.optim.schedule,
    weight_decay=run.optim.weight_decay,
    batch_size=run.data.batch_size,
    sequence_length=run.data.sequence_length,
    steps=run.data.steps,
    width=run.model.width,
    layers=run.model.layers,
    heads=run.model.heads,
    vocab=run.model.vocab,
    seed=run.seed,
    corpus=run.data.corpus,
    tokenizer=run.data.tokenizer,
  )
  for section in ('model', 'data', 'optim'):
    row.update(flatten({section: config.to_dict(getattr(run, section))}))
  return row


def collect(out_dir: Path | str) -> Any:
  """All rows of a study as one table, one row per evaluation; also written to OUT/runs.parquet.

  Which runs, the counting of `params` and `flops`, and which cells are held out is read from OUT/study.json.

  Returns:
    A pandas DataFrame. Columns: run_id, name, status, final (the last row of a finished run), held_out, diverged,
    step, tokens, loss (nats per token on held-out text), train_loss, bits_per_byte, params, params_*, flops, flops_*,
    seconds, the dials by short names, and every config path ('model.width').

  Raises:
    UserError: OUT has no study.json.
  """
  import pandas as pd

  out_dir = Path(out_dir)
  manifest = read_json(out_dir / 'study.json')
  if manifest is None:
    raise UserError(f'{str(out_dir)!r} holds no study.json: give the --out folder of `scaling run`')
  held_out = set(manifest.get('held_out', ()))
  rows = []
  for entry in manifest['runs']:
    run_dir = out_dir / 'runs' / entry['run_id']
    run = config.from_dict(Run, entry['config'])
    now = state(run_dir, run.data.steps)
    metrics = read_rows(run_dir / 'metrics.jsonl')
    if not metrics:
      continue
    constant = run_columns(run, now.result)
    for row in metrics:
      row = {'run_id': entry['run_id'], 'name': entry['name'], 'status': now.status, **row}
      row['final'] = now.finished and row is not None and row['step'] == metrics[-1]['step']
      row['held_out'] = entry['run_id'] in held_out
      row['diverged'] = now.status == 'diverged'
      row['params'] = constant[manifest['counting']]
      row['flops'] = row.get(manifest['flops'])
      rows.append({**row, **{key: value for key, value in constant.items() if key not in row}})
  frame = pd.DataFrame(rows)
  for column in frame.columns:  # a column of mixed kinds (a setting that is a number or absent) still has one type
    if frame[column].dtype == object and frame[column].notna().any():
      kinds = {type(v) for v in frame[column].dropna()}
      if kinds <= {int, float} and kinds:
        frame[column] = frame[column].astype('float64')
      elif len(kinds) > 1:
        frame[column] = frame[column].map(lambda v: v if v is None else str(v))
  if len(frame):
    temporary = out_dir / f'.runs.{os.getpid()}.tmp'
    frame.to_parquet(temporary, index=False)
    temporary.replace(out_dir / 'runs.parquet')
  return frame


def fingerprint(out_dir: Path) -> str:
  """A hash of everything that collecting reads: equal records give equal tables."""
  digest = hashlib.sha256()
  manifest = read_json(out_dir / 'study.json') or {}
  digest.update(config.canonical_json({k: v for k, v in manifest.items() if k != 'baselines'}).encode())
  for entry in manifest.get('runs', ()):
    run_dir = out_dir / 'runs' / entry['run_id']
    for name in ('metrics.jsonl', 'result.json'):
      try:
        digest.update((run_dir / name).read_bytes())
      except OSError:
        digest.update(b'-')
  return digest.hexdigest()
