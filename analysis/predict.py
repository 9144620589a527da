"""Predictions from a fit: compute-optimal sizes, the cost of departing from them, loss at (N, D), and pre-registration."""

import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import frontier
from scaling.errors import UserError


def optimum(fit: Any, flops: Any) -> pd.DataFrame:
  """Compute-optimal params, tokens, tokens per param and loss at budgets of flops = 6 params tokens, with 95% intervals.

  Raises UserError for a law that is not of exactly params and tokens.
  """
  c = _positive('flops', flops)
  n, d = frontier.optimal(fit, c)
  out = {
    'flops': c,
    'params': n,
    'tokens': d,
    'tokens_per_param': d / n,
    'loss': frontier.evaluate(fit, {'params': n, 'tokens': d}),
  }
  draws = frontier.samples(fit)
  if draws:
    sn, sd = frontier.optimal(fit, c, draws)
    # each draw's own optimum under its own law: what the best run of that budget would reach
    loss = frontier.evaluate_each(fit, {'params': sn, 'tokens': sd}, draws)
    for name, values in (('params', sn), ('tokens', sd), ('tokens_per_param', sd / sn), ('loss', loss)):
      out[f'{name}_low'], out[f'{name}_high'] = _band(values)
  return pd.DataFrame(out)


def departure(fit: Any, flops: float, params: Any) -> pd.DataFrame:
  """What it costs to train other sizes than the best at a budget.

  Columns: params, tokens (the budget's), ratio to the best size, loss, excess (loss over the best, less one),
  overspend (compute of the best size that reaches this loss is flops / overspend) and 95% intervals of excess.
  """
  c = float(_positive('flops', flops)[0])
  n = _positive('params', params)
  d = c / (frontier.FLOPS_PER_PARAM_TOKEN * n)
  best_n, best_d = (float(v[0]) for v in frontier.optimal(fit, c))
  best = float(frontier.evaluate(fit, {'params': best_n, 'tokens': best_d})[0])
  loss = frontier.evaluate(fit, {'params': n, 'tokens': d})
  grid = np.geomspace(c * 1e-6, c * 2, 600)
  gn, gd = frontier.optimal(fit, grid)
  least = frontier.evaluate(fit, {'params': gn, 'tokens': gd})
  reached = np.exp(np.interp(-loss, -least, np.log(grid)))
  out = {
    'params': n,
    'tokens': d,
    'ratio': n / best_n,
    'loss': loss,
    'excess': loss / best - 1,
    'overspend': np.maximum(c / reached, 1.0),
  }
  draws = frontier.samples(fit)
  if draws:
    sn, sd = frontier.optimal(fit, c, draws)
    own = frontier.evaluate_each(fit, {'params': sn, 'tokens': sd}, draws)
    out['excess_low'], out['excess_high'] = _band(frontier.evaluate(fit, {'params': n, 'tokens': d}, draws) / own - 1)
  return pd.DataFrame(out)


def loss(fit: Any, columns: Mapping[str, Any], new_run: bool = True) -> pd.DataFrame:
  """The law's outcome at given inputs with a 95% interval: of a single new run, or of the law's curve alone."""
  missing = [c for c in fit.declared.inputs if c not in columns]
  if missing:
    raise UserError(
      f'law {fit.law!r} predicts from {", ".join(fit.declared.inputs)}: give {", ".join("--" + m for m in missing)}'
    )
  columns = {k: _positive(k, columns[k]) for k in fit.declared.inputs}
  length = max(map(len, columns.values()))
  columns = {k: np.broadcast_to(v, (length,)) for k, v in columns.items()}
  outcome = fit.declared.outcome
  low, high = fit.predict_interval(columns, new_run=new_run)
  return pd.DataFrame({**columns, outcome: fit.predict(columns), f'{outcome}_low': low, f'{outcome}_high': high})


def register(
  fit: Any, cells: Mapping[str, Any] | pd.DataFrame, path: str | Path, note: str = '', date: str | None = None
) -> dict[str, Any]:
  """Writes predictions down before the runs are made: date, law, parameters, cells, and a hash over all of it.

  The hash is printed and can be published; `score` refuses a file that was changed since. A file is never overwritten.
  """
  path = Path(path)
  if path.exists():
    raise UserError(f'{path} is already written: a registered prediction is not changed; give another name')
  table = loss(fit, {k: cells[k] for k in fit.declared.inputs if k in cells})
  record = {
    'date': date or datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%dT%H:%M:%SZ'),
    'note': note,
    'law': fit.law,
    'formula': fit.formula,
    'estimate': {k: float(v) for k, v in fit.estimate.items()},
    'n_points': int(fit.n_points),
    'outcome': fit.declared.outcome,
    'level': 0.95,
    'cells': [{k: float(v) for k, v in row.items()} for row in table.to_dict('records')],
  }
  record['sha256'] = _digest(record)
  path.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
  return record


def score(path: str | Path, measured: pd.DataFrame, tolerance: float = 0.02) -> pd.DataFrame:
  """Registered predictions against rows measured since: error and whether the interval holds the outcome.

  A row answers a cell when each input agrees within `tolerance`. Raises UserError where the file was changed after it was
  written, or no row answers any cell.
  """
  path = Path(path)
  try:
    record = json.loads(path.read_text(encoding='utf-8'))
    given = record.pop('sha256')
  except (OSError, json.JSONDecodeError, KeyError, AttributeError) as error:
    raise UserError(f'{path} is not a registered prediction: {" ".join(str(error).split())[:120]}') from None
  if _digest(record) != given:
    raise UserError(
      f'{path} was changed after it was registered: its hash is {_digest(record)[:12]}, and {given[:12]} is written'
    )
  outcome = record['outcome']
  inputs = [k for k in record['cells'][0] if not k.startswith(outcome)]
  rows = []
  for cell in record['cells']:
    near = np.ones(len(measured), bool)
    for name in inputs:
      near &= np.abs(np.log(measured[name].to_numpy(float) / cell[name])) <= np.log1p(tolerance)
    for _, row in measured[near].iterrows():
      value = float(row[outcome])
      rows.append(
        {k: cell[k] for k in inputs}
        | {
          'run': row.get('name', ''),
          'measured': value,
          'predicted': cell[outcome],
          'low': cell[f'{outcome}_low'],
          'high': cell[f'{outcome}_high'],
        }
        | {'error': cell[outcome] / value - 1, 'inside': cell[f'{outcome}_low'] <= value <= cell[f'{outcome}_high']}
      )
  if not rows:
    raise UserError(f'no row answers a cell of {path} (within {tolerance:.0%} of its {", ".join(inputs)})')
  return pd.DataFrame(rows)


def _digest(record: Mapping[str, Any]) -> str:
  text = json.dumps({k: v for k, v in record.items() if k != 'sha256'}, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


def _band(values: np.ndarray) -> np.ndarray:
  with np.errstate(invalid='ignore'):
    return np.nanpercentile(np.where(np.isfinite(values), values, np.nan), [2.5, 97.5], axis=0)


def _positive(name: str, values: Any) -> np.ndarray:
  try:
    out = np.atleast_1d(np.asarray(values, float))
  except (TypeError, ValueError):
    raise UserError(f'{name} is {values!r}: it must be a number, such as 1e21') from None
  if not (len(out) and np.all(np.isfinite(out)) and np.all(out > 0)):
    raise UserError(f'{name} is {values}: it must be above 0')
  return out
