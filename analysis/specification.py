"""Specification curve: the same question answered under every defensible choice of the analyst (Simonsohn et al. 2020).

One table, hundreds of fits over law, loss and delta, window, excluded points, counting of parameters and FLOPs,
selection of learning rates, and last or all evaluations. Each fit keeps its interval; none is hidden.
"""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import fit as fitting
from analysis import frontier, table
from scaling.errors import UserError, unknown

LEARNING_RATES = ('learning_rate_peak', 'learning_rate', 'lr')
PARAM_COLUMNS = ('params_non_embedding', 'params_total')
FLOP_COLUMNS = ('flops_kaplan', 'flops_chinchilla', 'flops_exact', 'flops_exact_causal')
DRAWS = 200  # refits behind the interval of one specification, where its covariance cannot give one
AXES = ('law', 'loss', 'window', 'exclude', 'params', 'flops', 'points', 'rates')


@dataclasses.dataclass
class Curve:
  """rows: one per specification, sorted by estimate: the choices, estimate, low, high, objective, n_points, message.

  target: what was estimated. by_axis: how far each choice alone moves the estimate: axis, choice, median, fits.
  """

  target: str
  rows: pd.DataFrame
  by_axis: pd.DataFrame


def specifications(frame: pd.DataFrame, law_names: Sequence[str] = ('chinchilla', 'kaplan')) -> dict[str, list[str]]:
  """The choices that this table allows, by axis."""
  columns = set(frame.columns)
  last = table.finals(frame)
  choices = {
    'law': list(law_names),
    'loss': ['log-huber 1e-3', 'log-huber 1e-2', 'log-squared', 'log-l1'],
    'window': ['all', 'drop smallest tokens', 'drop smallest params'],
    'exclude': ['none', 'largest loss', 'largest compute'],
    'params': [c for c in PARAM_COLUMNS if c in columns] or ['params'],
    'flops': [c for c in FLOP_COLUMNS if c in columns] or ['6 params tokens'],
    'points': ['final'],
    'rates': ['all'],
  }
  if len(last) < len(frame) and 'run_id' in columns:
    choices['points'].append('all')
  rate = _rate_column(last)
  if rate is not None and last.groupby(['params', 'tokens'])[rate].nunique().max() > 1:
    choices['rates'] = ['all', 'best']
  return choices


def run(
  frame: pd.DataFrame,
  choices: dict[str, Sequence[str]] | None = None,
  *,
  target: str = 'a',
  flops: float | None = None,
  starts: int = 16,
  progress: Callable[[int, int], None] | None = None,
) -> Curve:
  """Fits every combination of `choices` (default: `specifications`), each estimating one target with its 95% interval.

  target: 'a', the exponent of compute-optimal params; 'params' or 'tokens_per_param', of the optimum at `flops`.
  A combination that cannot be fitted keeps its row, with the reason as message. Held-out rows are never used.
  """
  if target not in ('a', 'params', 'tokens_per_param'):
    raise unknown('target', target, ('a', 'params', 'tokens_per_param'))
  if target != 'a' and not (flops and flops > 0):
    raise UserError(f'target {target!r} needs a budget: give flops above 0')
  table.require(frame, ['params', 'tokens', 'loss'])
  if 'held_out' in frame.columns:
    frame = frame[~frame['held_out'].fillna(False).astype(bool)]
  frame = frame[frame['tokens'] > 0]
  choices = {**specifications(frame), **(choices or {})}
  for axis in choices:
    if axis not in AXES:
      raise unknown('axis of a specification curve', axis, AXES)
  # FLOPs change only how a fit is read, so that one fit serves all countings of them.
  fitted = [axis for axis in AXES if axis != 'flops']
  combinations = [
    dict(zip(fitted, values, strict=True)) for values in itertools.product(*(choices[axis] for axis in fitted))
  ]

  def one(chosen: dict[str, str]) -> list[dict[str, Any]]:
    fit, message, used = None, '', None
    try:
      used = _rows(frame, chosen)
      name, _, delta = chosen['loss'].partition(' ')
      cluster = 'run_id' if 'run_id' in used.columns else None
      fit = fitting.fit(
        used, chosen['law'], loss=name, delta=float(delta or 1e-3), cluster=cluster, starts=starts, probe=False,
        draws=DRAWS, drop=True,
      )  # fmt: skip
    except UserError as error:
      message = str(error)
    found = []
    for counting in choices['flops']:
      row = {**chosen, 'flops': counting, 'message': message}
      found.append(row | (_read(fit, used, counting, target, flops) if fit is not None else _NOTHING))
    return found

  # The first fit of each law and number of rows compiles its program: these go first, on different threads.
  ordered = sorted(combinations, key=lambda c: any(c[a] != choices[a][0] for a in fitted if a not in ('law', 'points')))
  rows = []
  with concurrent.futures.ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
    for i, found in enumerate(pool.map(one, ordered)):
      rows += found
      if progress is not None:
        progress(i + 1, len(ordered))
  out = pd.DataFrame(rows).sort_values('estimate', ignore_index=True)
  if out['estimate'].isna().all():
    raise UserError(f'none of {len(out)} specifications could be fitted: {out["message"].iloc[0]}')
  varying = [axis for axis in AXES if out[axis].nunique() > 1]
  parts = [
    {'axis': axis, 'choice': choice, 'median': group['estimate'].median(), 'fits': int(group['estimate'].notna().sum())}
    for axis in varying
    for choice, group in out.groupby(axis, sort=False)
  ]
  return Curve(target, out, pd.DataFrame(parts, columns=['axis', 'choice', 'median', 'fits']))


_NOTHING = {'estimate': np.nan, 'low': np.nan, 'high': np.nan, 'objective': np.nan, 'n_points': 0}


def _rows(frame: pd.DataFrame, chosen: dict[str, str]) -> pd.DataFrame:
  """The rows that one specification is fitted to, its counting of parameters as `params`."""
  frame = frame.assign(params=frame[chosen['params']])
  if chosen['points'] == 'final':
    frame = table.finals(frame)
  elif 'final' in frame.columns:
    # Early evaluations are warm-up, not scaling: the last half of each run, as Hoffmann et al. keep its tail.
    most = frame.groupby('run_id')['tokens'].transform('max')
    frame = frame[frame['tokens'] >= 0.5 * most]
  if chosen['rates'] == 'best':
    frame = _best_rate(frame)
  for word, column in (('tokens', 'tokens'), ('params', 'params')):
    if chosen['window'] == f'drop smallest {word}':
      frame = frame[frame[column] > frame[column].min()]
  if chosen['exclude'] == 'largest loss':
    frame = frame[frame['loss'] < frame['loss'].nlargest(max(1, len(frame) // 20)).min()]
  elif chosen['exclude'] == 'largest compute':
    compute = frame['params'] * frame['tokens']
    frame = frame[compute < compute.max()]
  elif chosen['exclude'] != 'none':
    raise unknown('exclusion', chosen['exclude'], ('none', 'largest loss', 'largest compute'))
  return frame


def _rate_column(frame: pd.DataFrame) -> str | None:
  return next((c for c in LEARNING_RATES if c in frame.columns), None)


def _best_rate(frame: pd.DataFrame) -> pd.DataFrame:
  """Per (params, tokens) the run of lowest final loss; all its rows."""
  last = table.finals(frame)
  best = last.loc[last.groupby(['params', 'tokens'])['loss'].idxmin()]
  return frame[frame['run_id'].isin(best['run_id'])] if 'run_id' in frame.columns else best


def _read(fit: fitting.Fit, used: pd.DataFrame, counting: str, target: str, flops: float | None) -> dict[str, Any]:
  """The target with its interval from one fit, when compute is counted by this column."""
  law = fit.declared
  kept = {'objective': fit.objective, 'n_points': fit.n_points, 'message': ''}
  if law.exponents is None:
    return {**_NOTHING, **kept, 'message': f'law {law.name!r} has no closed form of the optimum'}
  factor, size_exponent = _flops_rule(used, counting)

  def read(theta: dict[str, Any]) -> Any:
    # Least loss on factor N^s D = C: N ~ C^(1 / (r + s)), where r = (1 - a) / a is the ratio of the law's exponents.
    a = law.exponents(theta)['a']
    exponent = 1 / ((1 - a) / a + size_exponent)
    if target == 'a':
      return exponent
    params, tokens = _optimum(fit, theta, factor, size_exponent, flops)
    return params if target == 'params' else tokens / params

  found = fit.derive(read)
  return {'estimate': found['value'], 'low': found['ci95'][0], 'high': found['ci95'][1], **kept}


def _flops_rule(used: pd.DataFrame, counting: str) -> tuple[float, float]:
  """(k, s) of flops / tokens = k params^s over the rows; (6, 1) for the 6 params tokens rule."""
  if counting == '6 params tokens':
    return frontier.FLOPS_PER_PARAM_TOKEN, 1.0
  table.require(used, [counting])
  x = np.log(used['params'].to_numpy(float))
  y = np.log(used[counting].to_numpy(float) / used['tokens'].to_numpy(float))
  slope, offset = np.polyfit(x, y, 1)
  return float(np.exp(offset)), float(slope)


def _optimum(fit: fitting.Fit, theta: dict[str, Any], factor: float, s: float, flops: float) -> tuple[Any, Any]:
  """Params and tokens of least loss on factor params^s tokens = flops, on a fine grid of log params."""
  grid = np.exp(np.linspace(np.log(1e2), np.log(flops / factor) / s, 4001)[:-1])
  tokens = flops / (factor * grid**s)
  value = frontier.evaluate(fit, {'params': grid, 'tokens': tokens}, theta)
  best = np.argmin(value, axis=-1)
  params, tokens = grid[best], tokens[best]
  return (float(params), float(tokens)) if np.ndim(best) == 0 else (params, tokens)
