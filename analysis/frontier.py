"""Compute-optimal parameters and tokens by three approaches (Hoffmann et al. 2022, section 3), and their disagreement.

1. envelope: which run has the lowest loss at each compute, along all training curves.
2. isoflop: a curve of loss against log parameters at each budget, whose minimum is the optimum.
3. parametric: the minimum of a fitted law on the line flops = 6 params tokens.

Compute is 6 params tokens in the counting of `params` unless a column is named, so that the three speak of one compute.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import table
from scaling.errors import UserError

FLOPS_PER_PARAM_TOKEN = 6.0  # Kaplan et al. 2020, section 2.1: 2 forward, 4 backward


@dataclasses.dataclass
class Approach:
  """Optima at some budgets and the power laws through them: params = exp(k) flops^a, tokens = exp(m) flops^b.

  budgets: flops, params, tokens, loss of each optimum. estimate: a, k, b, m. samples: the same names, arrays [resamples].
  curves: what the optima were found on (isoflop: one curve a budget). messages: what was left out and why.
  """

  name: str
  budgets: pd.DataFrame
  estimate: dict[str, float]
  samples: dict[str, np.ndarray]
  messages: list[str]
  curves: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def interval(self, name: str) -> tuple[float, float]:
    """95% percentile interval of a, k, b or m; nan without resamples."""
    values = self.samples.get(name, np.array([]))
    values = values[np.isfinite(values)]
    return tuple(np.percentile(values, [2.5, 97.5])) if len(values) >= 20 else (np.nan, np.nan)

  def optimal(self, flops: Any) -> pd.DataFrame:
    """params and tokens at budgets (extrapolated along the power law), each with a 95% interval."""
    c = np.log(np.atleast_1d(np.asarray(flops, float)))
    out = {'flops': np.exp(c)}
    for column, slope, offset in (('params', 'a', 'k'), ('tokens', 'b', 'm')):
      out[column] = np.exp(self.estimate[offset] + self.estimate[slope] * c)
      draws = self.samples.get(slope, np.array([]))
      if len(draws) >= 20:
        lines = np.exp(self.samples[offset][:, None] + draws[:, None] * c)
        out[f'{column}_low'], out[f'{column}_high'] = np.nanpercentile(lines, [2.5, 97.5], axis=0)
      else:
        out[f'{column}_low'] = out[f'{column}_high'] = np.full(len(c), np.nan)
    return pd.DataFrame(out)


def compute(frame: pd.DataFrame, flops: str | None = None) -> np.ndarray:
  """FLOPs of each row: the named column, else 6 params tokens."""
  if flops is None:
    return FLOPS_PER_PARAM_TOKEN * frame['params'].to_numpy(float) * frame['tokens'].to_numpy(float)
  table.require(frame, [flops])
  return frame[flops].to_numpy(float)


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
  import jax

  law = fit.declared
  with jax.enable_x64(True):
    theta = {k: np.asarray(v, float) for k, v in (theta or fit.estimate).items()}
    if any(v.ndim for v in theta.values()):
      theta = {k: np.atleast_1d(v)[:, None] for k, v in theta.items()}
    columns = {k: np.atleast_1d(np.asarray(columns[k], float)) for k in law.inputs}
    return np.asarray(law.predict(theta, columns), float)


def _least(law: Any, theta: dict[str, np.ndarray], c: np.ndarray) -> np.ndarray:
  """Params of least outcome at each budget, by repeated refinement of a grid in log params."""
  import jax

  with jax.enable_x64(True):
    centre = 0.5 * np.log(c)
    shape = np.broadcast_shapes(*(v.shape for v in theta.values()), c.shape)
    centre, width = np.broadcast_to(centre, shape).copy(), np.broadcast_to(0.5 * np.log(c) + 2, shape).copy()
    deep = {k: v[..., None] for k, v in theta.items()}
    for _ in range(9):
      grid = centre[..., None] + width[..., None] * np.linspace(-1, 1, 41)
      n = np.exp(grid)
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
    draws.append(_lines(cs, ns, ds) if len(np.unique(ns)) > 1 else None)
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
  return Approach('envelope', budgets, _lines(c, n, d), _stack(draws), messages if outside > 0.005 else [])


def isoflop(
  frame: pd.DataFrame,
  budgets: Sequence[float] | None = None,
  flops: str | None = None,
  method: str = 'parabola',
  tolerance: float = 0.1,
  noise: float | None = None,
  bootstrap: int = 500,
  seed: int = 0,
) -> Approach:
  """Approach 2: the minimum of log loss over log params at each budget.

  Args:
    frame: one row per finished run.
    budgets: FLOPs. None: budgets shared by the rows where the grid is of isoFLOP form; else budgets in the range of a grid
      of params x tokens, whose losses are interpolated along tokens for each size.
    method: 'parabola' (robust to single rows), or 'akima' (through the points).
    tolerance: relative distance of a row's FLOPs from its budget.
    noise: relative standard deviation of a loss, for the resamples; None: from the parabolas' residuals.

  A budget is left out, with a message, where fewer than 3 sizes have it, the curve is concave, or the minimum is not inside.
  """
  if method not in ('parabola', 'akima'):
    raise UserError(f"isoflop method {method!r}: take 'parabola' or 'akima'")
  table.require(frame, ['params', 'tokens', 'loss'])
  rows = frame[(frame['tokens'] > 0) & (frame['loss'] > 0) & np.isfinite(frame['loss'])]
  groups = _groups(rows, compute(rows, flops), budgets, tolerance)
  kept, curves, messages = [], [], []
  for budget, n, d, loss in groups:
    found = _minimum(n, loss, method)
    curves.append({'flops': budget, 'params': np.exp(n), 'tokens': np.exp(d), 'loss': np.exp(loss), **found})
    if found['why']:
      messages.append(f'{budget:.3g} FLOPs left out: {found["why"]}')
    else:
      kept.append((np.log(budget), n, d, loss, found))
  if len(kept) < 2:
    raise UserError(
      f'isoflop found {len(kept)} budgets with a minimum inside the sizes, and needs 2: ' + '; '.join(messages)[:400]
    )
  c = np.array([k[0] for k in kept])
  best = np.array([k[4]['at'] for k in kept])
  tokens = np.array([np.interp(b, k[1], k[2]) for b, k in zip(best, kept, strict=True)])
  spare = sum(max(len(k[1]) - 3, 0) for k in kept)
  if noise is None:
    noise = np.sqrt(sum(np.sum(k[4]['residuals'] ** 2) for k in kept) / spare) if spare else 0.0
    if not spare:
      messages.append('no interval: each budget has 3 sizes, which a parabola meets exactly; give the noise of a loss')
  draws = []
  if bootstrap and noise > 0:
    random = np.random.default_rng(seed)
    again = [
      _resampled(n, loss + noise * random.standard_normal((bootstrap, len(n))), method) for _, n, _, loss, _ in kept
    ]
    at = np.stack(again, axis=1)  # nan where a resample has no minimum
    depth = np.stack([np.interp(a, k[1], k[2]) for a, k in zip(again, kept, strict=True)], axis=1)
    for x, y in zip(at, depth, strict=True):
      ok = np.isfinite(x)
      if ok.sum() >= 2:
        draws.append(_lines(c[ok], x[ok], y[ok]))
  if bootstrap and noise > 0 and len(draws) < 0.8 * bootstrap:
    messages.append(f'{1 - len(draws) / bootstrap:.0%} of the resamples have no two budgets with a minimum')
  table_ = pd.DataFrame(
    {
      'flops': np.exp(c),
      'params': np.exp(best),
      'tokens': np.exp(tokens),
      'loss': [np.exp(k[4]['least']) for k in kept],
    }
  )
  return Approach('isoflop', table_, _lines(c, best, tokens), _stack(draws), messages, curves)


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
    stacked = _stack([_lines(np.log(budgets), np.log(x), np.log(y)) for x, y in zip(sn, sd, strict=True)])
  frame = pd.DataFrame({'flops': budgets, 'params': n, 'tokens': d, 'loss': loss})
  return Approach('parametric', frame, _lines(np.log(budgets), np.log(n), np.log(d)), stacked, [])


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


def _groups(
  rows: pd.DataFrame, c: np.ndarray, budgets: Sequence[float] | None, tolerance: float
) -> list[tuple[float, np.ndarray, np.ndarray, np.ndarray]]:
  """(budget, log params, log tokens, log loss) with one entry per size, in order of size."""
  given = budgets is not None
  if not given:
    order = np.argsort(c)
    breaks = np.flatnonzero(np.diff(np.log(c[order])) > np.log1p(tolerance)) + 1
    parts = np.split(order, breaks)
    # an isoFLOP grid repeats few budgets, each at many sizes; a params x tokens grid does so only along diagonals
    full = [
      p for p in parts if rows['params'].iloc[p].nunique() >= 4 and np.ptp(np.log(c[p])) < 2 * np.log1p(tolerance)
    ]
    if len(full) >= 2 and sum(map(len, full)) >= 0.7 * len(c):
      budgets = [float(np.exp(np.mean(np.log(c[p])))) for p in full]
  if budgets is not None:
    out = []
    for budget in sorted(budgets):
      near = np.abs(np.log(c / budget)) <= np.log1p(tolerance)
      part = rows[near].assign(
        _n=np.log(rows['params'][near]), _d=np.log(rows['tokens'][near]), _l=np.log(rows['loss'][near])
      )
      part = part.groupby('_n', sort=True)[['_d', '_l']].mean()
      out.append((float(budget), part.index.to_numpy(float), part['_d'].to_numpy(), part['_l'].to_numpy()))
    if not given or any(len(g[1]) >= 3 for g in out):
      return out
  return _interpolated(rows, budgets)


def _interpolated(
  rows: pd.DataFrame, budgets: Sequence[float] | None
) -> list[tuple[float, np.ndarray, np.ndarray, np.ndarray]]:
  """Budgets across a grid of params x tokens: for each size, log loss interpolated (monotone cubic) in log tokens."""
  from scipy.interpolate import PchipInterpolator

  sizes = []
  for n, part in rows.groupby('params', sort=True):
    part = part.groupby('tokens', sort=True)['loss'].mean()
    if len(part) >= 2:
      d = np.log(part.index.to_numpy(float))
      sizes.append((np.log(float(n)), d, PchipInterpolator(d, np.log(part.to_numpy(float)))))
  if len(sizes) < 3:
    raise UserError(f'isoflop needs 3 sizes with several token budgets each, and {len(sizes)} have them')
  edge = np.log(FLOPS_PER_PARAM_TOKEN)
  if budgets is None:
    low, high = min(n + d[0] for n, d, _ in sizes) + edge, max(n + d[-1] for n, d, _ in sizes) + edge
    grid = np.linspace(low, high, 200)
    covered = [g for g in grid if sum(d[0] <= g - edge - n <= d[-1] for n, d, _ in sizes) >= 3]
    if not covered:
      raise UserError('isoflop: no budget is reached by 3 sizes')
    budgets = np.exp(np.linspace(covered[0], covered[-1], 8))
  out = []
  for budget in budgets:
    picks = [
      (n, np.log(budget) - edge - n, f) for n, d, f in sizes if d[0] - 1e-9 <= np.log(budget) - edge - n <= d[-1] + 1e-9
    ]
    n, d = np.array([p[0] for p in picks]), np.array([p[1] for p in picks])
    out.append((float(budget), n, d, np.array([float(f(x)) for _, x, f in picks])))
  return out


def _minimum(n: np.ndarray, loss: np.ndarray, method: str) -> dict[str, Any]:
  """Minimum of log loss over log params: `at`, `least`, `residuals`, the curve, and `why` where there is none."""
  empty = {'at': np.nan, 'least': np.nan, 'residuals': np.zeros(len(n)), 'coefficients': None}
  if len(n) < 3:
    return empty | {'why': f'{len(n)} sizes, and a minimum needs 3'}
  centre = n.mean()
  if method == 'akima' and len(n) >= 5:
    from scipy.interpolate import Akima1DInterpolator

    grid = np.linspace(n[0], n[-1], 2001)
    values = Akima1DInterpolator(n, loss)(grid)
    i = int(np.argmin(values))
    found = {'at': grid[i], 'least': values[i], 'residuals': np.zeros(len(n)), 'coefficients': None}
    why = _edge(i, len(grid))
    return found | {'why': why, 'at': np.nan if why else grid[i]}
  (coefficients,), (residuals,) = _parabolas(n - centre, loss[None])
  bend, slope, _ = coefficients
  found = empty | {'residuals': residuals, 'coefficients': (*map(float, coefficients), float(centre))}
  if not bend > 0:
    return found | {'why': 'the curve is concave: it has no minimum'}
  at = centre - slope / (2 * bend)
  least = float(np.polyval(coefficients, at - centre))
  if at < n[0] or at > n[-1]:
    return found | {'why': f'the minimum lies beyond the {"smallest" if at < n[0] else "largest"} size'}
  return found | {'at': float(at), 'least': least, 'why': ''}


def _parabolas(x: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Robust parabolas through losses [b, k] at x [k]: coefficients [b, 3], highest power first, and residuals [b, k].

  From 5 points on, Huber weights at 1.345 robust deviations, so that one odd run does not bend the curve.
  """
  scale = np.abs(x).max()
  basis = np.vander(x / scale, 3)
  weight = np.ones_like(losses)
  for _ in range(20 if len(x) >= 5 else 1):
    normal = np.einsum('bk,ki,kj->bij', weight, basis, basis)
    coefficients = np.linalg.solve(normal, np.einsum('bk,ki,bk->bi', weight, basis, losses)[..., None])[..., 0]
    residuals = losses - coefficients @ basis.T
    deviation = np.maximum(1.4826 * np.median(np.abs(residuals), axis=1, keepdims=True), 1e-12)
    weight = 1 / np.maximum(np.abs(residuals) / (1.345 * deviation), 1)
  return coefficients / scale ** np.array([2, 1, 0]), residuals


def _resampled(n: np.ndarray, losses: np.ndarray, method: str) -> np.ndarray:
  """Minima [b] of resampled losses [b, k]; nan where there is none inside."""
  if method == 'akima' and len(n) >= 5:
    return np.array([_minimum(n, loss, method)['at'] for loss in losses])
  coefficients, _ = _parabolas(n - n.mean(), losses)
  with np.errstate(divide='ignore', invalid='ignore'):
    at = n.mean() - coefficients[:, 1] / (2 * coefficients[:, 0])
  return np.where((coefficients[:, 0] > 0) & (at >= n[0]) & (at <= n[-1]), at, np.nan)


def _edge(i: int, length: int) -> str:
  return (
    'the lowest point is the smallest size'
    if i == 0
    else 'the lowest point is the largest size'
    if i == length - 1
    else ''
  )


def _lines(c: np.ndarray, n: np.ndarray, d: np.ndarray) -> dict[str, float]:
  """Least-squares lines of log params and log tokens on log flops."""
  a, k = np.polyfit(c - c.mean(), n, 1) if len(c) > 1 else (np.nan, np.nan)
  b, m = np.polyfit(c - c.mean(), d, 1) if len(c) > 1 else (np.nan, np.nan)
  return {'a': float(a), 'k': float(k - a * c.mean()), 'b': float(b), 'm': float(m - b * c.mean())}


def _stack(draws: Sequence[dict[str, float] | None]) -> dict[str, np.ndarray]:
  draws = [d for d in draws if d]
  return {k: np.array([d[k] for d in draws]) for k in ('a', 'k', 'b', 'm')} if draws else {}
