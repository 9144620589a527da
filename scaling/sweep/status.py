"""What of a study is done, running, diverged, failed or owed, read from its folder alone."""

import collections
import math
from pathlib import Path
from typing import Any

from scaling import config
from scaling.config import Run
from scaling.errors import UserError
from scaling.sweep import live, plan, records, timing

WORDS = {'new': 'owed', 'begun': 'owed, begun'}


def read(out_dir: Path | str) -> list[dict[str, Any]]:
  """One entry per run of OUT: run_id, name, status, step, steps, loss, losses, seconds, message, held_out.

  Raises UserError if the folder is not one that `scaling run` made.
  """
  out_dir = Path(out_dir)
  if not out_dir.is_dir():
    raise UserError(f'{str(out_dir)!r} is no folder: give the --out of `scaling run`, for instance out/quickstart')
  manifest = records.read_json(out_dir / 'study.json')
  if manifest is None:
    raise UserError(f'{str(out_dir)!r} holds no study.json: give the --out folder of `scaling run`')
  held_out = set(manifest.get('held_out', ()))
  entries = []
  for entry in manifest['runs']:
    run_dir = out_dir / 'runs' / entry['run_id']
    run = config.from_dict(Run, entry['config'])
    state = records.state(run_dir, run.data.steps)
    rows = records.read_rows(run_dir / 'metrics.jsonl')
    entries.append(
      {
        'run_id': entry['run_id'],
        'name': entry['name'],
        'status': state.status,
        'step': state.step,
        'steps': run.data.steps,
        'losses': [row.get('loss') for row in rows],
        'loss': rows[-1].get('loss') if rows else None,
        'tokens_per_second': rows[-1].get('tokens_per_second') if rows else None,
        'seconds': rows[-1].get('seconds') if rows else None,
        'message': state.message,
        'held_out': entry['run_id'] in held_out,
      }
    )
  return entries


def render(out_dir: Path | str) -> Any:
  """The state of a study as a rich table and a line of counts."""
  from rich.console import Group
  from rich.table import Table

  entries = read(out_dir)
  table = Table(header_style='bold')
  table.add_column('run')
  table.add_column('state')
  for head in ('progress', 'loss', 'tokens/s', 'time'):
    table.add_column(head, justify='right')
  table.add_column('curve')
  for entry in entries:
    loss, seconds, speed = entry['loss'], entry['seconds'], entry['tokens_per_second']
    table.add_row(
      entry['name'] + (' (held out)' if entry['held_out'] else ''),
      WORDS.get(entry['status'], entry['status']),
      f'{min(1.0, entry["step"] / entry["steps"]):.0%}',
      f'{loss:.4f}' if isinstance(loss, float) and math.isfinite(loss) else '',
      plan.count_text(speed) if speed else '',
      timing.duration(seconds) if seconds else '',
      live.sparkline(entry['losses']),
    )
  lines = [f'{entry["name"]}: {entry["message"]}' for entry in entries if entry['status'] == 'failed']
  return Group(table, counts(entries), *lines)


def counts(entries: list[dict[str, Any]]) -> str:
  """'20 done, 2 running, 1 diverged, 1 failed, 0 owed of 24 runs'."""
  count = collections.Counter(entry['status'] for entry in entries)
  owed = count['new'] + count['begun']
  return (
    f'{count["done"]} done, {count["running"]} running, {count["diverged"]} diverged, {count["failed"]} failed, '
    f'{owed} owed of {len(entries)} runs'
  )
