"""Rolling backtest: fit on all scales below a cut, predict those above it, for each cut, and compare laws by it."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import fit as fitting
from analysis import frontier, laws, solver, table
from scaling.errors import UserError

SPARE = 2  # points beyond the number of parameters that a fit below a cut must have


@dataclasses.dataclass
class Backtest:
  """rows: one per law, cut and run above it. summary: one per law. messages: the fits that could not be made.

  Columns of rows: law, cut, reach (scale of the run over the cut), n_fit, the law's inputs, measured, predicted, low,
  high (95% for a single new run), error (predicted / measured - 1), covered.
  Columns of summary: law, cuts, predictions, median_error, mean_error, worst_error (absolute, relative), bias,
  coverage (share of runs inside their 95% interval), width (median of (high - low) / measured).
  """

  rows: pd.DataFrame
  summary: pd.DataFrame
  messages: list[str]


def backtest(
  frame: pd.DataFrame,
  law_names: Sequence[str],
  *,
  by: str = 'flops',
  cuts: Sequence[float] | int = 6,
  ahead: float | None = None,
  **options: Any,
) -> Backtest:
  """Fits each law to the last rows of runs with `by` at or below each cut and predicts all above it.

  by: 'flops' (a column, or 6 params tokens where there is none), or any column: 'params', 'tokens'. cuts: values, or how
  many to spread over the distinct values of `by`. ahead: predict only up to this many times the cut. options: for `fit`.
  Raises UserError where no cut leaves a law enough points below it and a run above.
  """
  frame = table.finals(frame)
  scale = (
    frontier.compute(frame, 'flops' if 'flops' in frame.columns else None) if by == 'flops' else _column(frame, by)
  )
  needed = min(len(laws.get(name).parameters) for name in law_names) + SPARE
  chosen = _cuts(scale, cuts, needed)

  def one(name: str) -> tuple[list[pd.DataFrame], list[str]]:
    law = laws.get(name)
    table.require(frame, [*law.inputs, law.outcome])
    rows, messages = [], []
    for cut in chosen:
      below = frame[scale <= cut]
      reach = scale / cut
      above = (reach > 1) & (reach <= (ahead or np.inf))
      if len(below) < len(law.parameters) + SPARE or not above.any():
        messages.append(f'{name} at {by}={cut:.3g}: {len(below)} points below and {int(above.sum())} above: left out')
        continue
      try:
        with solver.padded(len(frame)):  # all cuts share one compiled program
          fit = fitting.fit(below, name, **{'probe': False, 'starts': 32, **options})
          rows.append(_score(fit, frame[above], reach[above], cut))
      except UserError as error:
        messages.append(f'{name} at {by}={cut:.3g}: {error}')
    return rows, messages

  with concurrent.futures.ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
    found = list(pool.map(one, law_names))
  rows, messages = ([item for pair in found for item in pair[k]] for k in (0, 1))
  if not rows:
    reason = f': {messages[0]}' if messages else ''
    raise UserError(f'no cut of {by!r} leaves enough points below and a run above{reason}')
  out = pd.concat(rows, ignore_index=True)
  return Backtest(out, _summary(out), messages)


def _score(fit: fitting.Fit, above: pd.DataFrame, reach: np.ndarray, cut: float) -> pd.DataFrame:
  law = fit.declared
  inputs = {name: above[name].to_numpy(float) for name in law.inputs}
  measured = above[law.outcome].to_numpy(float)
  predicted = fit.predict(inputs)
  low, high = fit.predict_interval(inputs, new_run=True)
  out = {'law': law.name, 'cut': cut, 'reach': reach, 'n_fit': fit.n_points, **inputs}
  if 'run_id' in above.columns:
    out['run_id'] = above['run_id'].to_numpy()
  out |= {'measured': measured, 'predicted': predicted, 'low': low, 'high': high, 'error': predicted / measured - 1}
  return pd.DataFrame(out | {'covered': (low <= measured) & (measured <= high)})


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
  out = []
  for name, group in rows.groupby('law', sort=False):
    size = group['error'].abs()
    out.append(
      {
        'law': name,
        'cuts': group['cut'].nunique(),
        'predictions': len(group),
        'median_error': size.median(),
        'mean_error': size.mean(),
        'worst_error': size.max(),
        'bias': group['error'].mean(),
        'coverage': group['covered'].mean(),
        'width': ((group['high'] - group['low']) / group['measured']).median(),
      }
    )
  return pd.DataFrame(out).sort_values('mean_error', ignore_index=True)


def _column(frame: pd.DataFrame, name: str) -> np.ndarray:
  table.require(frame, [name])
  return frame[name].to_numpy(float)


def _cuts(scale: np.ndarray, cuts: Sequence[float] | int, needed: int) -> list[float]:
  """The asked cuts, or `cuts` of the distinct values that leave `needed` points below and one above."""
  if not isinstance(cuts, int):
    values = sorted(float(c) for c in cuts)
    if not values or not all(np.isfinite(c) and c > 0 for c in values):
      raise UserError(f'cuts {list(cuts)}: give numbers above 0')
    return values
  if cuts < 1:
    raise UserError(f'cuts={cuts}: give at least one')
  values = np.unique(scale)[:-1]
  values = values[[int((scale <= v).sum()) >= needed for v in values]]
  picked = np.unique(np.linspace(0, len(values) - 1, min(cuts, len(values))).round().astype(int))
  return values[picked].tolist()
