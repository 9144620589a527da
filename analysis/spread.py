"""The spread of an estimate: sandwich covariances by cluster and by row, draws from them, and laws evaluated at many draws."""

import dataclasses
import functools
import math

import numpy as np

from analysis import coordinates, solver
from scaling.errors import UserError


@functools.lru_cache(maxsize=256)
def _predictor(law):
  import jax

  def one(values, x):
    return law.predict(dict(zip(law.names, values, strict=True)), x)

  return jax.jit(jax.vmap(one, in_axes=(0, None)))


def evaluate(law, values: np.ndarray, columns: dict) -> np.ndarray:
  """Outcome [s, n] of the law at parameter values [s, p] and input columns (scalars broadcast against [n])."""
  import jax

  if law.prepare is not None:
    columns = law.prepare(columns)
  missing = [c for c in law.inputs if c not in columns]
  if missing:
    raise UserError(f'law {law.name!r} needs {", ".join(law.inputs)}; {", ".join(missing)} not given')
  arrays = {c: np.atleast_1d(np.asarray(columns[c], np.float64)) for c in law.inputs}
  n = max(len(a) for a in arrays.values())
  arrays = {c: np.broadcast_to(a, (n, *a.shape[1:])) for c, a in arrays.items()}
  rows = solver.bucket(n)
  inputs = solver.pad_inputs(arrays, rows)
  width = max(a[0].size for a in arrays.values())
  # few shapes are compiled: both axes are padded to a handful of sizes, and large work is cut in pieces
  piece = 1 if len(values) == 1 else max(1, min(solver.bucket(len(values)), int(2e7 // (rows * width))))
  parts = []
  with jax.enable_x64(True), jax.default_device(solver.cpu_device()):
    for at in range(0, len(values), piece):
      chunk = np.asarray(values[at : at + piece], np.float64)
      padded = np.concatenate([chunk, np.repeat(chunk[:1], piece - len(chunk), axis=0)])
      parts.append(np.asarray(_predictor(law)(padded, inputs))[: len(chunk), :n])
  return np.concatenate(parts)


def residuals(problem, u: np.ndarray) -> np.ndarray:
  """Outcome minus prediction [n], in the residual space."""
  c = problem.coordinates
  return -solver.derivatives(problem.law, problem.space, problem.rows.inputs, problem.target, u, c.matrix, c.offset)[0]


@dataclasses.dataclass(frozen=True)
class Spread:
  """Covariances at the estimate, in internal coordinates [p, p] (zero rows for what does not move), by cluster and by row.

  plain is the sandwich by cluster without the jackknife's correction, naive the inverse Hessian for independent rows of one
  variance, bread [p, p] the smoothed Hessian, scale the factor that makes 2 (F - F0) * scale a chi-square for independent rows.
  """

  coords: coordinates.Coordinates
  u: np.ndarray
  covariance: np.ndarray
  covariance_by_row: np.ndarray
  plain: np.ndarray
  naive: np.ndarray
  bread: np.ndarray
  moving: np.ndarray
  scale: float
  freedom: int

  def _transformed(self, covariance: np.ndarray) -> np.ndarray:
    m = self.coords.matrix
    return np.sqrt(np.maximum(np.diag(m @ covariance @ m.T), 0.0))

  def _named(self, covariance: np.ndarray) -> dict:
    values = self.coords.values(self.u)
    errors = self._transformed(covariance) * np.where(self.coords.is_log, values, 1.0)
    return dict(zip(self.coords.law.names, errors.tolist(), strict=True))

  @property
  def se(self) -> dict:
    """Standard errors of the natural values (delta method)."""
    return self._named(self.covariance)

  @property
  def se_by_row(self) -> dict:
    """The same as if every row were independent."""
    return self._named(self.covariance_by_row)

  def quantile(self, level: float) -> float:
    """Student's t for this many clusters."""
    from scipy import stats

    return float(stats.t.ppf((1 + level) / 2, self.freedom))

  def ci(self, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Low and high [p]: symmetric on each parameter's own scale, inside the law's bounds."""
    v = self.coords.transformed(self.u)
    reach = self.quantile(level) * self._transformed(self.covariance)
    is_log = self.coords.is_log
    natural = lambda a: np.where(is_log, np.exp(np.clip(np.where(is_log, a, 0.0), -700, 700)), a)  # noqa: E731
    lower, upper = (np.array([p.bounds[i] for p in self.coords.law.parameters]) for i in (0, 1))
    return np.maximum(natural(v - reach), lower), np.minimum(natural(v + reach), upper)

  def correlation(self) -> dict:
    """Correlations of the estimates, on their own scales, as {name: {name: value}}."""
    m = self.coords.matrix
    c = m @ self.covariance @ m.T
    sd = np.sqrt(np.maximum(np.diag(c), 0.0))
    with np.errstate(invalid='ignore', divide='ignore'):
      r = c / np.outer(sd, sd)
    names = self.coords.law.names
    return {a: {b: float(r[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)}


def sandwich(problem) -> Spread:
  """Sandwich covariances H^-1 B H^-1 at problem.u, in a one-step jackknife form over clusters and over rows.

  The form deletes one cluster at a time from both H and B (CR3 of the clustered-errors literature), which keeps the
  intervals honest when clusters are few. Huber's curvature is a density of residuals near zero; for a narrow delta it is
  estimated over a window of residuals rather than over the few inside delta.
  """
  c, rows = problem.coordinates, problem.rows
  args = (problem.law, problem.space, rows.inputs, problem.target, problem.u, c.matrix, c.offset)
  r, _, _ = solver.derivatives(*args)
  delta, unit = problem.delta, min(problem.delta, 1.0)
  weight = rows.weights * np.where(r > 0, problem.tilt[1], problem.tilt[0]) / unit
  psi = weight * np.clip(r, -delta, delta)
  r, jacobian, second = solver.derivatives(*args, psi)
  n, p = jacobian.shape
  mad = 1.4826 * np.median(np.abs(r))
  width = max(delta, 1.06 * min(mad or np.inf, np.std(r) or np.inf) * n**-0.2) if math.isfinite(delta) else math.inf
  if not math.isfinite(width) and math.isfinite(delta):
    width = delta
  if problem.loss in ('l1', 'asymmetric'):
    # a density from fewer rows than this leaves directions without any curvature
    second = np.zeros_like(second)  # the rows at the kink pull by their multipliers, which psi does not know
    width = max(width, float(np.sort(np.abs(r))[min(n, 3 * int(c.moving.sum())) - 1]))
  curvature = np.where(np.abs(r) <= width, weight * (delta / width if math.isfinite(width) else 1.0), 0.0)
  with np.errstate(invalid='ignore'):
    at_edge = ((problem.u <= c.lower) | (problem.u >= c.upper)) & c.moving
  moving = c.moving & ~at_edge
  k = int(moving.sum())
  scores = psi[:, None] * jacobian[:, moving]
  pieces = jacobian[:, moving] * np.sqrt(curvature)[:, None]
  bread = pieces.T @ pieces + second[np.ix_(moving, moving)]
  values, vectors = np.linalg.eigh(bread) if k else (np.zeros(0), np.zeros((0, 0)))
  floor = 1e-12 * max(values.max(initial=0.0), 1e-300)
  bread = (vectors * np.maximum(values, floor)) @ vectors.T
  scale = curvature.sum() / max((psi**2).sum(), 1e-300) * max(n - k, 1) / n

  def full(small: np.ndarray) -> np.ndarray:
    whole = np.zeros((p, p))
    whole[np.ix_(moving, moving)] = small
    return whole

  def meat(codes: np.ndarray, jackknife: bool = True) -> np.ndarray:
    groups = int(codes.max()) + 1
    g = np.zeros((groups, k))
    np.add.at(g, codes, scores)
    if not jackknife:
      moved = np.linalg.solve(bread, g.T).T
      return moved.T @ moved * groups / max(groups - 1, 1)
    h = np.zeros((groups, k, k))
    np.add.at(h, codes, pieces[:, :, None] * pieces[:, None, :])
    # (H - H_c)^-1 g_c, with the deletion limited where a cluster alone carries a direction
    half = vectors / np.sqrt(np.maximum(values, floor))
    share = np.einsum('ai,gij,jb->gab', half.T, h, half)
    lam, vec = np.linalg.eigh(share)
    lam = 1.0 / (1.0 - np.clip(lam, 0.0, 0.9))
    moved = np.einsum('ij,gjk,gk,glk,lm,gm->gi', half, vec, lam, vec, half.T, g, optimize=True)
    return moved.T @ moved * (groups - 1) / max(groups, 1)

  if k:
    naive = np.linalg.inv(bread) / max(scale, 1e-300)
    by_row = meat(np.arange(n)) if n <= 20000 else naive
    by_cluster = meat(rows.clusters) if rows.n_clusters < n else by_row
    plain = meat(rows.clusters, jackknife=False)
  else:
    naive = by_row = by_cluster = plain = np.zeros((0, 0))
  freedom = max(1, rows.n_clusters - (k if rows.n_clusters == n else 1))
  return Spread(
    c, problem.u, full(by_cluster), full(by_row), full(plain), full(naive), full(bread), moving, float(scale), freedom
  )


def draw(problem, spread: Spread, count: int, seed: int) -> tuple[np.ndarray, float]:
  """(values [count, p], how many independent draws they are worth): values as probable as the data allow: the objective, scaled by the sandwich, taken as a log density.

  Draws come from two normals (the sandwich with and without the jackknife's correction), and are picked again by importance, so
  that far along a curved or flat direction the objective rules and not its quadratic model. Laws of whole curves keep the normal draws.
  """
  rng = np.random.default_rng(seed)
  c, moving = problem.coordinates, spread.moving
  k = int(moving.sum())
  if not k:
    return np.tile(c.values(problem.u), (count, 1)), float(count)
  stretch = spread.quantile(0.95) / 1.959963984540054
  halves = []
  for covariance in (spread.covariance, spread.plain):
    values, vectors = np.linalg.eigh(covariance[np.ix_(moving, moving)])
    halves.append(vectors * np.sqrt(np.maximum(values, 1e-14 * max(values[-1], 1e-300))) * stretch)
  plain_only = any(np.ndim(v) > 1 for v in problem.rows.inputs.values())
  tries = count if plain_only else 4 * count
  z = rng.standard_normal((tries, k))
  which = np.zeros(tries, int) if plain_only else np.arange(tries) % 2
  step = np.where(which[:, None] == 0, z @ halves[0].T, z @ halves[1].T)
  u = np.tile(problem.u, (tries, 1))
  u[:, moving] += step
  inside = ((u >= c.lower) & (u <= c.upper))[:, moving].all(1)
  clipped = np.where(c.moving, np.clip(u, c.lower, c.upper), problem.u)
  values = c.values(clipped)
  if plain_only:
    return values, float(count)
  density = [-0.5 * (np.linalg.solve(h, step.T) ** 2).sum(0) - np.linalg.slogdet(h)[1] for h in halves]
  proposal = np.logaddexp(*density)
  # one factor turns the objective's rise into a chi-square for clustered, unequal rows
  inner = np.ix_(moving, moving)
  factor = k / max(np.trace(np.linalg.solve(spread.naive[inner], spread.covariance[inner])), 1e-300)
  rise = objective_of(problem, values) - solver_objective(problem)
  target = -rise / min(problem.delta, 1.0) * spread.scale * min(factor, 1.0) / stretch**2
  weight = np.where(inside & np.isfinite(target), target - proposal, -np.inf)
  if not np.isfinite(weight.max()):
    return values[:count], 0.0
  weight = np.exp(weight - weight.max())
  effective = weight.sum() ** 2 / (weight**2).sum()
  if not effective >= 20:
    return values[:count], 0.0
  return values[rng.choice(tries, count, p=weight / weight.sum())], float(effective)


def objective_of(problem, values: np.ndarray) -> np.ndarray:
  """The objective [s] of parameter values [s, p], as the solver counts it; inf where the law is not defined."""
  predicted = evaluate(problem.law, values, problem.rows.inputs)
  with np.errstate(all='ignore'):
    r = (np.log(predicted) if problem.space == 'log' else predicted) - problem.target
    a, delta = np.abs(r), problem.delta
    side = np.where(r > 0, problem.tilt[1], problem.tilt[0])
    rho = np.where(a <= delta, 0.5 * a * a, delta * (a - 0.5 * delta) if math.isfinite(delta) else 0.0)
    total = (problem.rows.weights * side * rho).sum(1)
  return np.where(np.isfinite(total), total, np.inf)


def solver_objective(problem) -> float:
  """The objective at problem.u, as the solver counts it (Huber at the solver's delta)."""
  r = residuals(problem, problem.u)
  a, delta = np.abs(r), problem.delta
  side = np.where(r < 0, problem.tilt[1], problem.tilt[0])
  with np.errstate(invalid='ignore'):
    rho = np.where(a <= delta, 0.5 * a * a, delta * (a - 0.5 * delta) if math.isfinite(delta) else 0.0)
  return float((problem.rows.weights * side * rho).sum())
