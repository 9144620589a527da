"""Compute-optimal parameters and tokens by three approaches (Hoffmann et al. 2022, section 3), and their disagreement.

1. envelope: which run has the lowest loss at each compute, along all training curves.
2. isoflop: a curve of loss against log parameters at each budget, whose minimum is the optimum.
3. parametric: the minimum of a fitted law on the line flops = 6 params tokens.

Compute is 6 params tokens in the counting of `params` unless a column is named, so that the three speak of one compute.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import solver, table, uncertainty
from analysis.approach import FLOPS_PER_PARAM_TOKEN, Approach, compute, lines, stack
from analysis.isoflop import isoflop
from scaling.errors import UserError

__all__ = [
  'FLOPS_PER_PARAM_TOKEN', 'Approach', 'approaches', 'compute', 'disagreement', 'envelope', 'evaluate', 'evaluate_each', 'isoflop', 'optimal',
  'parametric', 'samples',
]  # fmt: skip


def optimal(fit: Any, flops: Any, theta: Mapping[str, Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Params and tokens of least loss on flops = 6 params tokens: exact for Chinchilla and Kaplan, numeric otherwise.

  theta: parameters other than the fit's estimate; arrays [resamples] give results [resamples, budgets].
  """
  c = np.atleast_1d(np.asarray(flops, float)) / FLOPS_PER_PARAM_TOKEN
  theta = {k: np.asarray(v, float) for k, v in (theta or fit.estimate).items()}
  law = fit.declared
  if set(law.inputs) != {'params', 'tokens'}:
    raise UserError(
      f'law {law.name!r} takes {", ".join(law.inputs)}: optimal params and tokens need a law of exactly those two'
    )
  many = any(v.ndim for v in theta.values())
  if many:
    theta = {k: np.broadcast_to(v, np.broadcast_shapes(v.shape, (1,)))[:, None] for k, v in theta.items()}
  with np.errstate(over='ignore', divide='ignore', invalid='ignore'):
    if law.name in ('chinchilla', 'chinchilla-tied'):
      total = theta['alpha'] + theta['beta']
      scale = (np.log(theta['alpha']) + np.log(theta['A']) - np.log(theta['beta']) - np.log(theta['B'])) / total
      params = np.exp(scale + theta['beta'] / total * np.log(c))
    elif law.name == 'kaplan':
      p = theta['alpha_N'] / theta['alpha_D']
      params = np.exp((np.log(p) + p * np.log(theta['N_c']) + np.log(c) - np.log(theta['D_c'])) / (p + 1))
    else:
      params = _least(law, theta, c)
    return params, c / params


def evaluate(fit: Any, columns: Mapping[str, Any], theta: Mapping[str, Any] | None = None) -> np.ndarray:
  """The law's outcome for columns [n], at the estimate ([n]) or at parameters with a leading axis ([resamples, n])."""
  law = fit.declared
  values = np.stack(np.broadcast_arrays(*(np.asarray((theta or fit.estimate)[k], float) for k in law.names)), axis=-1)
  columns = {k: np.asarray(columns[k], float) for k in law.inputs}
  found = uncertainty.evaluate(law, np.atleast_2d(values), columns)
  return found if values.ndim == 2 else found[0]


def evaluate_each(fit: Any, columns: Mapping[str, Any], theta: Mapping[str, Any]) -> np.ndarray:
  """The outcome [resamples, n] of each draw's law at that draw's own inputs [resamples, n]."""
  with _exact():
    theta = {k: np.asarray(v, float)[:, None] for k, v in theta.items()}
    return np.asarray(fit.declared.predict(theta, {k: np.asarray(v, float) for k, v in columns.items()}), float)


@contextlib.contextmanager
def _exact() -> Iterator[None]:
  """float64 on the CPU, whatever else is there."""
  import jax

  with jax.enable_x64(True), jax.default_device(solver.cpu_device()):
    yield


def _least(law: Any, theta: dict[str, np.ndarray], c: np.ndarray) -> np.ndarray:
  """Params of least outcome at each budget, by repeated refinement of a grid in log params."""
  shape = np.broadcast_shapes(*(v.shape for v in theta.values()), c.shape)
  centre = np.broadcast_to(0.5 * np.log(c), shape).copy()
  width = np.broadcast_to(0.5 * np.log(c) + 2, shape).copy()
  deep = {k: v[..., None] for k, v in theta.items()}
  for _ in range(9):
    grid = centre[..., None] + width[..., None] * np.linspace(-1, 1, 41)
    n = np.exp(grid)
    with _exact():
      value = np.asarray(law.predict(deep, {'params': n, 'tokens': c[:, None] / n}), float)
    best = np.argmin(np.where(np.isfinite(value), value, np.inf), axis=-1)
    centre = np.take_along_axis(grid, best[..., None], -1)[..., 0]
    width = width / 16
  return np.exp(centre)


def envelope(
  frame: pd.DataFrame, flops: str | None = None, points: int = 600, bootstrap: int = 200, seed: int = 0
) -> Approach:
  """Approach 1: at each compute, the run of lowest loss among all training curves.

  Stretches where the best run is the smallest or the largest size are left out: a better one may lie beyond the grid.
  Resamples are of runs.
  """
  table.require(frame, ['params', 'tokens', 'loss'])
  if 'run_id' not in frame.columns:
    raise UserError('the envelope needs training curves: a run_id column and several rows per run')
  curves = []
  rows = frame.assign(_c=compute(frame, flops))
  for run_id, run in rows[(rows['tokens'] > 0) & np.isfinite(rows['loss'])].groupby('run_id', sort=True):
    run = run.sort_values('_c').drop_duplicates('_c')
    if len(run) >= 2:
      logs = np.log(run[['_c', 'tokens', 'loss']].to_numpy(float)).T
      curves.append((str(run_id), float(run['params'].iloc[0]), *logs))
  if len({c[1] for c in curves}) < 4:
    raise UserError(
      f'the envelope needs training curves of at least 4 sizes, and {len({c[1] for c in curves})} have one'
    )
  grid = np.linspace(min(c[2][0] for c in curves), max(c[2][-1] for c in curves), points)
  loss = np.stack([np.interp(grid, c[2], c[4], left=np.inf, right=np.inf) for c in curves])
  tokens = np.stack([np.interp(grid, c[2], c[3]) for c in curves])
  params = np.array([c[1] for c in curves])

  def best(chosen: np.ndarray) -> tuple[np.ndarray, ...]:
    sub = loss[chosen]
    who = chosen[np.argmin(sub, axis=0)]
    size = params[who]
    inside = np.isfinite(sub.min(axis=0)) & (size > params[chosen].min()) & (size < params[chosen].max())
    return (
      grid[inside],
      np.log(size[inside]),
      tokens[who, np.arange(points)][inside],
      who[inside],
      sub.min(axis=0)[inside],
    )

  c, n, d, who, least = best(np.arange(len(curves)))
  if len(np.unique(n)) < 2:
    raise UserError('the envelope is made by the smallest and largest sizes alone: no optimum inside the grid')
  random = np.random.default_rng(seed)
  draws = []
  for _ in range(bootstrap):
    cs, ns, ds, _, _ = best(np.unique(random.integers(0, len(curves), len(curves))))
    draws.append(lines(cs, ns, ds) if len(np.unique(ns)) > 1 else None)
  outside = 1 - len(c) / points
  messages = [
    f'{outside:.0%} of the range of compute is left out: the best run there is of the smallest or largest size'
  ]
  budgets = pd.DataFrame(
    {
      'flops': np.exp(c),
      'params': np.exp(n),
      'tokens': np.exp(d),
      'loss': np.exp(least),
      'run_id': [curves[i][0] for i in who],
    }
  )
  return Approach('envelope', budgets, lines(c, n, d), stack(draws), messages if outside > 0.005 else [])


def parametric(fit: Any, budgets: Sequence[float]) -> Approach:
  """Approach 3: the optimum of a fitted law, whose power laws are exact for Chinchilla and Kaplan, and OLS otherwise."""
  budgets = np.sort(np.asarray(budgets, float))
  if len(budgets) < 2:
    budgets = np.geomspace(budgets[0] / 3, budgets[0] * 3, 5)
  n, d = optimal(fit, budgets)
  loss = evaluate(fit, {'params': n, 'tokens': d})
  draws = samples(fit)
  stacked = {}
  if draws:
    sn, sd = optimal(fit, budgets, draws)
    stacked = stack([lines(np.log(budgets), np.log(x), np.log(y)) for x, y in zip(sn, sd, strict=True)])
  frame = pd.DataFrame({'flops': budgets, 'params': n, 'tokens': d, 'loss': loss})
  return Approach('parametric', frame, lines(np.log(budgets), np.log(n), np.log(d)), stacked, [])


def samples(fit: Any) -> dict[str, np.ndarray]:
  """Draws of a fit's parameters as {parameter: [resamples]}; empty without any."""
  draws = fit.samples
  if draws is None or len(draws) == 0:
    return {}
  return {name: np.asarray(draws, float)[:, i] for i, name in enumerate(fit.declared.names)}


def approaches(frame: pd.DataFrame, fit: Any | None, flops: str | None = None) -> tuple[list[Approach], list[str]]:
  """All three approaches that the rows allow, and the reasons why others are missing. Held-out rows are not used."""
  if 'held_out' in frame.columns:
    frame = frame[~frame['held_out'].fillna(False).astype(bool)]
  found, missing = [], []
  for name, make in (
    ('envelope', lambda: envelope(frame, flops)),
    ('isoflop', lambda: isoflop(table.finals(frame), flops=flops)),
  ):
    try:
      found.append(make())
    except UserError as error:
      missing.append(f'{name}: {error}')
  if fit is not None:
    c = compute(frame[frame['tokens'] > 0], flops)
    found.append(parametric(fit, np.geomspace(c.min(), c.max(), 9)))
  return found, missing


def disagreement(found: Sequence[Approach], flops: float) -> pd.DataFrame:
  """Exponents and optima at one budget by each approach, with 95% intervals, and the ratio of its params to the last's."""
  rows = []
  for one in found:
    at = one.optimal(flops).iloc[0]
    row = {'approach': one.name}
    for name in ('a', 'b'):
      row[name] = one.estimate[name]
      row[f'{name}_low'], row[f'{name}_high'] = one.interval(name)
    row |= {k: at[k] for k in ('flops', 'params', 'params_low', 'params_high', 'tokens', 'tokens_low', 'tokens_high')}
    rows.append(row | {'tokens_per_param': at['tokens'] / at['params']})
  out = pd.DataFrame(rows)
  out['params_ratio'] = out['params'] / out['params'].iloc[-1]
  return out
