"""Approach 2: compute-optimal sizes from curves of loss against size at equal compute, with their minima checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import table
from analysis.approach import FLOPS_PER_PARAM_TOKEN, Approach, compute, lines, stack
from scaling.errors import UserError


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
    found = minimum(n, loss, method)
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
        draws.append(lines(c[ok], x[ok], y[ok]))
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
  return Approach('isoflop', table_, lines(c, best, tokens), stack(draws), messages, curves)


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


def minimum(n: np.ndarray, loss: np.ndarray, method: str) -> dict[str, Any]:
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
    return np.array([minimum(n, loss, method)['at'] for loss in losses])
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
