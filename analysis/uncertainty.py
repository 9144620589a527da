"""How sure a fit is: bootstraps, profile likelihoods, seed noise, and intervals of derived numbers; sandwich errors are in `analysis.spread`."""

import math
import time

import numpy as np

from analysis import solver
from analysis.spread import Spread, draw, evaluate, objective_of, residuals, sandwich, solver_objective
from scaling.errors import UserError

__all__ = [
  'RESAMPLES', 'Spread', 'bootstrap', 'draw', 'evaluate', 'interval', 'objective_of', 'profile', 'profile_objective',
  'replicate_noise', 'resample', 'residuals', 'sandwich', 'solver_objective',
]  # fmt: skip
RESAMPLES = ('cluster', 'row', 'residual', 'parametric')


def interval(value: float, draws: np.ndarray, level: float = 0.95) -> dict:
  """{'value', 'se', 'ci95'} of a derived number from its draws; draws that are not finite count as unbounded."""
  draws = np.asarray(draws, np.float64)
  draws = np.where(np.isnan(draws), np.inf, draws)
  low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method='nearest')
  finite = draws[np.isfinite(draws)]
  se = float(np.std(finite, ddof=1)) if len(finite) == len(draws) > 1 else math.nan
  return {'value': float(value), 'se': se, 'ci95': [float(low), float(high)]}


def resample(problem, count: int, kind: str, seed: int) -> dict:
  """{'weights': [count, n]} or {'target': [count, n]} of `count` resamples."""
  rng = np.random.default_rng(seed)
  rows = problem.rows
  if kind in ('cluster', 'row'):
    codes = rows.clusters if kind == 'cluster' else np.arange(rows.n)
    groups = int(codes.max()) + 1
    if groups < 3:
      raise UserError(f'{groups} {"clusters" if kind == "cluster" else "rows"}: a bootstrap needs at least 3')
    times = rng.multinomial(groups, np.full(groups, 1 / groups), size=count)
    return {'weights': times[:, codes] * rows.weights}
  out = residuals(problem, problem.u)
  fitted = problem.target - out
  stretch = math.sqrt(rows.n / max(1, rows.n - problem.coordinates.n_free))
  if kind == 'residual':
    return {'target': fitted + stretch * rng.choice(out - np.median(out), (count, rows.n))}
  variance = np.mean(out**2) * stretch**2
  shared = 0.0
  if rows.n_clusters < rows.n:
    # rows of a run share part of their noise: the part is the mean product of two residuals of one run
    total, squares, sizes = (np.bincount(rows.clusters, a) for a in (out, out**2, np.ones(rows.n)))
    pairs = (sizes * (sizes - 1)).sum()
    shared = min(max((total**2 - squares).sum() / pairs, 0.0) * stretch**2, variance) if pairs else 0.0
  common = rng.standard_normal((count, rows.n_clusters))[:, rows.clusters] * math.sqrt(shared)
  return {'target': fitted + common + rng.standard_normal((count, rows.n)) * math.sqrt(variance - shared)}


def bootstrap(
  problem, count: int, kind: str = 'cluster', seed: int = 0, thorough: bool = True
) -> tuple[np.ndarray, dict]:
  """Parameter values [count, p] of refits, and {'resamples', 'certified', 'worst_decrement', 'checked', 'agreed', 'seconds'}.

  Each resample starts from the estimate, and some are also solved from far starts. Where any of those ends lower, all are solved
  from the lower optima so found too; if `thorough`, others are checked then, and if that is not enough, all start from afar.
  """
  began = time.perf_counter()
  data = resample(problem, count, kind, seed)
  limit = {'max_steps': 240 if thorough else 72}
  solution = problem.minimise(np.tile(problem.u, (count, 1)), cold=False, **data, **limit)
  u, objective, decrement = solution.u.copy(), solution.objective.copy(), solution.decrement.copy()
  objective = np.where(np.isfinite(objective), objective, np.inf)
  far = problem.coordinates.draw_starts(8, seed + 1)[1:4]

  def again(lanes: np.ndarray, starts: np.ndarray, cold: bool = True) -> np.ndarray:
    """Solves these lanes from each start and keeps what is better; the lanes that end lower by over 1e-6."""
    index = np.repeat(lanes, len(starts))
    lots = {k: v[index] for k, v in data.items()}
    other = problem.minimise(np.tile(starts, (len(lanes), 1)), cold=cold, **lots, **limit)
    value = np.where(np.isfinite(other.objective), other.objective, np.inf).reshape(len(lanes), -1)
    pick = value.argmin(1) + np.arange(len(lanes)) * len(starts)
    with np.errstate(invalid='ignore'):
      gain = objective[lanes] - np.where(np.isfinite(other.objective[pick]), other.objective[pick], np.inf)
    size = np.where(np.isfinite(objective[lanes]), np.abs(objective[lanes]), 0.0)
    better = (gain > 1e-9 * size) | ((decrement[lanes] > solver.CERTIFIED) & (gain >= -1e-12 * size))
    to, of = lanes[better], pick[better]
    u[to], objective[to], decrement[to] = other.u[of], other.objective[of], other.decrement[of]
    return lanes[gain > 1e-6 * size]

  stride = max(1, count // (20 if thorough else 10))
  checked = np.arange(0, count, stride)
  lower = again(checked, far)
  doubtful = np.flatnonzero(decrement > solver.CERTIFIED)
  if len(lower):
    everyone = np.arange(count)
    again(everyone, u[lower[np.linspace(0, len(lower) - 1, min(1 + thorough, len(lower))).astype(int)]], cold=False)
    more = np.setdiff1d(np.arange(stride // 2, count, stride), checked)
    if thorough:
      checked = np.concatenate([checked, more])
      last = again(more, far) if len(more) else lower
      lower = np.concatenate([lower, last]) if len(more) else lower
    doubtful = everyone if thorough and len(last) else np.flatnonzero(decrement > solver.CERTIFIED)
  if len(doubtful) and (thorough or len(doubtful) < count // 4):
    again(doubtful, far)
  info = {
    'resamples': count,
    'certified': int((decrement <= solver.CERTIFIED).sum()),
    'worst_decrement': float(decrement.max()),
    'checked': len(checked),
    'agreed': len(checked) - len(lower),
    'seconds': time.perf_counter() - began,
  }
  return problem.coordinates.values(u), info


def profile_objective(
  problem, spread: Spread, name: str, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """At each fixed value of one parameter: (objective [m], likelihood-ratio statistic [m], the other parameters [m, p])."""
  law, base = problem.law, problem.coordinates
  j = law.index(name)
  values = np.asarray(values, np.float64)
  is_log = law.parameters[j].transform == 'log'
  v = np.log(values) if is_log else values
  # fix parameter j: its own coordinate freezes, and every row of the map that used it is re-expressed
  m = len(values)
  matrix = np.tile(base.matrix, (m, 1, 1))
  offset = np.tile(base.offset, (m, 1))
  lower = np.where(base.moving, base.lower, 0.0)
  upper = np.where(base.moving, base.upper, 0.0)
  row = base.matrix[j]
  factor = base.matrix[:, j] / row[j]
  # u_j = (v - c_j - sum_k row_k u_k) / row_j, substituted everywhere
  matrix = matrix - factor[:, None] * row
  offset = offset + factor * (v[:, None] - base.offset[j])
  lower, upper = (np.tile(b, (m, 1)) for b in (lower, upper))
  lower[:, j] = upper[:, j] = 0.0
  start = np.tile(problem.u, (m, 1))
  start[:, j] = 0.0
  far = base.draw_starts(4, 7)[:3]
  far[:, j] = 0.0
  begin = np.concatenate([start, np.repeat(far, m, axis=0)])
  again = lambda a: np.concatenate([a] * (1 + len(far)))  # noqa: E731
  solution = solver.minimise(
    law, problem.space, problem.rows.inputs, problem.target, problem.rows.weights, begin, again(lower), again(upper),
    again(matrix), again(offset), delta=problem.delta, wide=problem.wide, tilt=problem.tilt, reach=base.reach,
  )  # fmt: skip
  objective = np.where(np.isfinite(solution.objective), solution.objective, np.inf).reshape(1 + len(far), m)
  best = objective.argmin(0)
  lane = best * m + np.arange(m)
  u = solution.u[lane]
  transformed = np.einsum('mpq,mq->mp', matrix, u) + offset
  natural = np.where(base.is_log, np.exp(np.where(base.is_log, transformed, 0.0)), transformed)
  objective = objective.min(0)
  own = solver_objective(problem)
  ratio = 1.0
  if spread.moving[j]:
    a, b = (np.diag(base.matrix @ c @ base.matrix.T)[j] for c in (spread.naive, spread.plain))
    ratio = min(1.0, a / b) if b > 0 else 1.0
  statistic = 2 * (objective - own) / min(problem.delta, 1.0) * spread.scale * ratio
  return objective, np.maximum(statistic, 0.0), natural


def profile(fit_or_problem, name: str, level: float = 0.95, points: int = 33) -> dict:
  """Profile likelihood of one parameter: {'values', 'objective', 'statistic', 'others', 'threshold', 'ci', 'unbounded'}.

  The objective is minimised over the other parameters at each value; `ci` is where the statistic stays below its threshold
  (Student's t squared), -inf or inf (0 for positive parameters) where it never leaves it before the search's edge.
  """
  problem = getattr(fit_or_problem, 'problem', fit_or_problem)
  if problem is None:
    raise UserError('this fit was read from a file: a profile needs the data; fit again')
  spread = sandwich(problem)
  c, law = problem.coordinates, problem.law
  j = law.index(name)
  if not c.moving[j]:
    raise UserError(f'{name!r} is fixed or tied: it has no profile')
  is_log = law.parameters[j].transform == 'log'
  at = float(c.transformed(problem.u)[j])
  edge = 6.9 if is_log else max(5.0 * abs(at), 3.0)
  low_bound, high_bound = law.parameters[j].bounds if not is_log else (-math.inf, math.inf)
  se = float(spread._transformed(spread.covariance)[j])
  se = se if 0 < se < edge else edge / 4
  threshold = spread.quantile(level) ** 2
  natural = np.exp if is_log else np.asarray
  seen: dict[float, tuple] = {at: (solver_objective(problem), 0.0, c.values(problem.u))}

  def look(v: np.ndarray) -> None:
    v = np.array([x for x in dict.fromkeys(np.clip(v, low_bound, high_bound).tolist()) if x not in seen])
    if len(v):
      for x, *found in zip(v.tolist(), *profile_objective(problem, spread, name, natural(v)), strict=True):
        seen[x] = tuple(found)

  reach = threshold**0.5 * se * np.array([0.25, 0.5, 0.75, 1.0, 1.4, 2.0, 4.0])
  reach = np.unique(np.concatenate([reach[reach < edge], edge * np.array([0.5, 1.0])]))
  look(np.concatenate([at - reach, at + reach]))
  ends = []
  for sign in (-1, 1):
    end = None
    for _ in range(3):
      side = sorted((x for x in seen if sign * (x - at) >= 0), key=lambda x: sign * x)
      out = [i for i, x in enumerate(side) if seen[x][1] > threshold]
      if not out:
        break
      inside, outside = side[out[0] - 1], side[out[0]]
      end = (inside, outside)
      look(np.linspace(inside, outside, 8)[1:-1])
    if end is None:
      ends.append(sign * math.inf)
      continue
    a, b = (math.sqrt(seen[x][1]) for x in end)
    ends.append(end[0] + (end[1] - end[0]) * (threshold**0.5 - a) / max(b - a, 1e-300))
  lowest, highest = max(ends[0], at - edge), min(ends[1], at + edge)
  look(np.linspace(lowest, highest, points))
  order = np.array(sorted(seen))
  ci = [float(np.exp(e)) if is_log else float(max(min(e, high_bound), low_bound)) for e in ends]
  return {
    'parameter': name,
    'values': natural(order),
    'objective': np.array([seen[x][0] for x in order.tolist()]),
    'statistic': np.array([seen[x][1] for x in order.tolist()]),
    'others': np.array([seen[x][2] for x in order.tolist()]),
    'threshold': threshold,
    'ci': ci,
    'unbounded': [
      not math.isfinite(e) and not math.isfinite(b) for e, b in zip(ends, (low_bound, high_bound), strict=True)
    ],
    'searched': [float(natural(np.array(at - edge))), float(natural(np.array(at + edge)))],
  }


def replicate_noise(table, law, outcome: str | None = None) -> dict:
  """Scatter of runs that differ in seed only: {'sd_log', 'sd', 'groups', 'degrees'}; nan where no run is repeated.

  It is the floor of any interval for a single run, and of the residuals of a law that is right.
  """
  from analysis import laws
  from analysis.rows import to_columns

  law = laws.get(law)
  data = to_columns(table)
  y = np.asarray(data[outcome or law.outcome], np.float64)
  keys = np.stack([np.asarray(data[c], np.float64) for c in law.inputs], axis=1)
  good = np.isfinite(y) & np.isfinite(keys).all(1)
  _, codes = np.unique(keys[good], axis=0, return_inverse=True)
  y, sizes = y[good], np.bincount(codes.ravel())
  degrees = int((sizes - 1).sum())

  def pooled(values: np.ndarray) -> float:
    mean = np.bincount(codes.ravel(), values) / sizes
    return math.sqrt(((values - mean[codes.ravel()]) ** 2).sum() / degrees) if degrees else math.nan

  sd_log = pooled(np.log(y)) if (y > 0).all() else math.nan
  return {'sd_log': sd_log, 'sd': pooled(y), 'groups': int((sizes > 1).sum()), 'degrees': degrees}
