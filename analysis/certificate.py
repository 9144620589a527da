"""What certifies a fit: gradient, starts, conditioning, bounds, and what the data leave unidentified; and the printed summary."""

import math

import numpy as np

from analysis import solver, uncertainty
from analysis.rows import named

FLAT = (
  1.0  # standard error along a unit direction of the centred coordinates (a factor of e) above which it is called flat
)


def certificate(problem, solution: solver.Solution, best: int, exact: bool = False) -> tuple[dict, list[str]]:
  """The certificate of the best lane among the starts, and warnings in words; exact: `vertex` proved the minimum."""
  objective = np.where(np.isfinite(solution.objective), solution.objective, np.inf)
  lowest = objective[best]
  moving = problem.coordinates.moving
  free = moving & ~solution.frozen[best]
  hessian = solution.hessian[best][np.ix_(free, free)]
  gradient = solution.gradient[best][free]
  values = np.linalg.eigvalsh(hessian) if free.any() else np.ones(1)
  condition = float(values[-1] / values[0]) if values[0] > 0 else math.inf
  scale = max(solution.scaled[best], 1e-300)
  exact_fit = solution.decrement[best] == 0.0
  # a kink is reached only to the width that stands for it
  near = 1e-8 if problem.loss in ('squared', 'huber') else 1e-5
  at_best = objective <= lowest + near * abs(lowest) + (1e-20 if exact_fit else 0.0)
  share = float(at_best.mean())
  bounds = []
  for j, one in enumerate(problem.law.parameters):
    if not moving[j]:
      continue
    for side, edge in enumerate((problem.coordinates.lower[j], problem.coordinates.upper[j])):
      if math.isfinite(edge) and abs(problem.u[j] - edge) <= 1e-9 * max(1.0, abs(edge)):
        bounds.append(
          {
            'parameter': one.name,
            'side': ('lower', 'upper')[side],
            'of_search': not problem.coordinates.bounded_by[j, side],
          }
        )
  record = {
    'gradient_norm': float(np.abs(gradient).max(initial=0.0) / scale) if not (exact_fit or exact) else 0.0,
    'starts': len(objective),
    'share_at_best': share,
    'hessian_condition': condition,
    'at_bound': [b['parameter'] for b in bounds],
    'bounds': bounds,
    'unidentified': [],
    'decrement': float(solution.decrement[best]),
    'certified': bool(solution.certified[best] or exact),
    'vertex': exact,
    'starts_certified': int(solution.certified.sum()),
    'steps': int(solution.steps[best]),
  }
  warnings = []
  if not record['certified']:
    warnings.append('not certified: the solver stopped before the gradient did')
  if share < 0.25 or at_best.sum() < 3:
    warnings.append(
      f'only {int(at_best.sum())} of {len(objective)} starts reach the best objective: a better one may exist; ask for more starts'
    )
  for b in bounds:
    text = 'the edge of the search: its term vanishes or is unbounded' if b['of_search'] else 'its bound'
    warnings.append(f'{b["parameter"]} lies on {text} ({b["side"]})')
  return record, warnings


def probe(problem, record: dict, spread: uncertainty.Spread) -> dict:
  """{'unidentified': [text], 'ci95': {name: ends}} by walking parameters away from the estimate and refitting the others.

  A parameter is unidentified when the data accept it at the edge of a thousandfold range (exponents: far beyond any seen);
  a direction is flat when one standard error along it moves the centred coordinates by more than a factor of e.
  """
  names = problem.law.names
  found, ends = [], {}
  moving = np.flatnonzero(spread.moving)
  suspects = {b['parameter'] for b in record['bounds']}
  if len(moving):
    bread = spread.bread[np.ix_(moving, moving)] * spread.scale
    values, vectors = np.linalg.eigh(bread)
    for value, vector in zip(values, vectors.T, strict=True):
      error = math.sqrt(1 / max(value, 1e-300))
      sandwich = math.sqrt(max(vector @ spread.covariance[np.ix_(moving, moving)] @ vector, 0.0))
      if max(error, sandwich) > FLAT:
        parts = [(names[moving[k]], vector[k]) for k in np.argsort(-np.abs(vector)) if abs(vector[k]) > 0.25]
        suspects |= {name for name, _ in parts}
        sign = math.copysign(1.0, parts[0][1])
        words = ' with '.join(f'{name} {"up" if sign * part > 0 else "down"}' for name, part in parts)
        kind = 'flat direction' if len(parts) > 1 else 'flat'
        found.append(f'{kind}: {words} (standard error {max(error, sandwich):.3g} in log units)')
  errors = spread._transformed(spread.covariance)
  for j in np.flatnonzero(problem.coordinates.moving):
    one = problem.law.parameters[j]
    wide = errors[j] > (
      2.0 if one.transform == 'log' else 0.75 * max(abs(problem.coordinates.transformed(problem.u)[j]), 0.1)
    )
    # a coefficient's value extrapolates to one parameter or token; its term at the data's centre is what could be unidentified
    if one.name in suspects or (wide and not one.centre):
      result = uncertainty.profile(problem, one.name, points=2)
      ends[one.name] = result['ci']
      sides = [side for side, open_ in zip(('below', 'above'), result['unbounded'], strict=True) if open_]
      if sides:
        found.append(f'{one.name}: unbounded {" and ".join(sides)} (profile 95%: {_ends(result["ci"])})')
  return {'unidentified': found, 'ci95': ends}


def _ends(ci) -> str:
  return ' to '.join('unbounded' if not math.isfinite(e) or e == 0 else f'{e:.4g}' for e in ci)


def vertex(problem) -> tuple[np.ndarray, float, bool]:
  """Finishes a least-absolute-deviation (or quantile) fit exactly: (u, objective, whether the multipliers prove it a minimum).

  Rows that the smoothed solution leaves within its tiny delta are held at zero residual, and Newton's method on
  the Lagrangian of the remaining sum finds the point; it is kept if it is no worse and its multipliers are admissible.
  """
  c, rows, u = problem.coordinates, problem.rows, problem.u.copy()
  free = np.flatnonzero(c.moving & (u > c.lower) & (u < c.upper))
  args = (problem.law, problem.space, rows.inputs, problem.target)

  def at(u, pull=None):
    return solver.derivatives(*args, u, c.matrix, c.offset, pull)

  def objective(r):
    return float((rows.weights * np.where(r > 0, problem.tilt[1], problem.tilt[0]) * np.abs(r)).sum())

  r = at(u)[0]
  best, start = objective(r), u.copy()
  active = np.flatnonzero((np.abs(r) <= 1.001 * problem.delta) & (rows.weights > 0))
  outside = np.ones(rows.n, bool)
  outside[active] = False
  force = np.where(outside, rows.weights * np.where(r > 0, problem.tilt[1], -problem.tilt[0]), 0.0)
  pull = force.copy()
  pull[active] = rows.weights[active] * r[active] / problem.delta
  for _ in range(8):
    r, jacobian, second = at(u, pull)
    jacobian = jacobian[:, free]
    a = len(active)
    system = np.zeros((len(free) + a, len(free) + a))
    system[: len(free), : len(free)] = second[np.ix_(free, free)]
    system[: len(free), len(free) :] = jacobian[active].T
    system[len(free) :, : len(free)] = jacobian[active]
    right = -np.concatenate([force @ jacobian, r[active]])
    if not (np.isfinite(system).all() and np.isfinite(right).all()):
      break  # the step before left the law's domain; the smoothed solution stands
    solved = np.linalg.lstsq(system, right, rcond=1e-14)[0]
    if not np.isfinite(solved).all():
      break
    u[free] += solved[: len(free)]
    pull[active] = solved[len(free) :]
    if np.abs(solved[: len(free)]).max(initial=0.0) < 1e-14:
      break
  r = at(u)[0]
  polished = objective(r)
  low, high = -rows.weights * problem.tilt[0], rows.weights * problem.tilt[1]
  # of the remaining gradient nothing may be left once the multipliers carry their part
  jacobian = at(u)[1][:, free]
  left, size = np.abs(pull @ jacobian), np.abs(pull) @ np.abs(jacobian)
  stationary = (left <= 1e-8 * np.maximum(size, 1e-300)).all()
  admissible = ((pull[active] >= low[active] * (1 + 1e-6)) & (pull[active] <= high[active] * (1 + 1e-6))).all()
  if np.isfinite(polished) and polished <= best * (1 + 1e-12) and admissible:
    return u, min(polished, best), bool(stationary)
  return start, best, False


def cluster_warning(se: dict, se_by_row: dict, rows, cluster: str | None) -> list[str]:
  """Says how much larger errors are when the rows of a run count as one, where that matters."""
  if cluster is None or rows.n_clusters == rows.n:
    return []
  ratios = {k: se[k] / se_by_row[k] for k in se if se_by_row[k] > 0 and math.isfinite(se[k])}
  if max(ratios.values(), default=0.0) < 1.5:
    return []
  listed = ', '.join(f'{k} {v:.1f}' for k, v in ratios.items())
  return [
    f'the {rows.n} rows come from {rows.n_clusters} values of {cluster}: standard errors by {cluster} are these times those by row: '
    f'{listed}; errors that treat rows as independent are too small'
  ]


def summary(fit) -> str:
  """A few lines for a person."""
  c, s = fit.certificate, fit.settings
  lines = [f'{fit.law}: {fit.formula}']
  dropped = f', {len(s["rows_dropped"])} dropped' if s['rows_dropped'] else ''
  loss = s['loss'] + (f' (delta {s["delta"]:g})' if s.get('delta') else '')
  lines.append(f'{fit.n_points} points of {fit.n_runs} runs{dropped}; loss {loss}; objective {fit.objective:.9g}')
  reasons: dict[str, list] = {}
  for row in s['rows_dropped']:
    reasons.setdefault(row['reason'], []).append(row['row'])
  lines += [f'dropped: {named(rows)}: {reason}' for reason, rows in reasons.items()]
  width = max(len(k) for k in fit.estimate)
  for name, value in fit.estimate.items():
    note = ''
    if name in s['fixed']:
      note = '  (fixed)'
    elif name in s['tied']:
      note = f'  (= {s["tied"][name]})'
    elif name in c['at_bound']:
      note = '  (on bound)'
    low, high = fit.ci95[name]
    lines.append(f'  {name:<{width}}  {value:<12.6g} se {fit.se[name]:<10.4g} 95% {low:.5g} to {high:.5g}{note}')
  for name, found in fit.frontier.items():
    meaning = {'a': 'N* ~ C^a', 'b': 'D* ~ C^b'}.get(name, name)
    lines.append(
      f'  {name:<{width}}  {found["value"]:<12.6g} se {found["se"]:<10.4g} 95% {found["ci95"][0]:.5g} to {found["ci95"][1]:.5g}  ({meaning})'
    )
  state = 'certified' if c['certified'] else 'NOT CERTIFIED'
  lines.append(
    f'{state}: gradient {c["gradient_norm"]:.1e}, {c["share_at_best"]:.0%} of {c["starts"]} starts at the best, '
    f'Hessian condition {c["hessian_condition"]:.3g}; intervals: {s["interval"]}'
  )
  noise = s.get('replicates')
  if noise and noise['sd']:
    lines.append(
      f'repeated runs: {noise["groups"]} cells, {noise["degrees"]} degrees of freedom, standard deviation {noise["sd"]:.3g} '
      f'beside {fit.residual_sd:.3g} of the residuals: no single run can be predicted better'
    )
  lines += [f'unidentified: {text}' for text in c['unidentified']]
  lines += [f'warning: {text}' for text in fit.warnings]
  return '\n'.join(lines)
