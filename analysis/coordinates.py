"""The coordinates in which a law is fitted: centred, scaled, bounded; fixed and tied parameters are affine maps.

The solver moves u; the transformed parameters are v = M u + c, and a parameter's value is exp(v) or v. A coefficient of
params^-alpha has v = u + alpha * mean(log params), so that u is the log of its term at the data's centre: the Hessian is
then well conditioned and a start means the same on any data. A fixed parameter has a zero row in M, a tied one
the row of the parameter it follows; both are frozen coordinates.
"""

import dataclasses
import math

import numpy as np

from analysis.laws.base import times
from scaling.errors import UserError


@dataclasses.dataclass(frozen=True)
class Coordinates:
  """The map of one fit: matrix [p, p], offset [p], box lower/upper [p], start ranges [p, 2], reach [p], moving [p] bool.

  bounded_by [p, 2] says whether a side of the box is a bound of the law or user (True) or the edge of the search (False).
  """

  law: object
  matrix: np.ndarray
  offset: np.ndarray
  lower: np.ndarray
  upper: np.ndarray
  start: np.ndarray
  reach: np.ndarray
  moving: np.ndarray
  bounded_by: np.ndarray

  @property
  def is_log(self) -> np.ndarray:
    return np.array([p.transform == 'log' for p in self.law.parameters])

  @property
  def n_free(self) -> int:
    """Number of parameters that are estimated."""
    return int(self.moving.sum())

  def transformed(self, u: np.ndarray) -> np.ndarray:
    """v [..., p] of u [..., p]."""
    return u @ self.matrix.T + self.offset

  def values(self, u: np.ndarray) -> np.ndarray:
    """Natural values [..., p] of u [..., p]."""
    v = self.transformed(u)
    with np.errstate(over='ignore'):
      return np.where(self.is_log, np.exp(np.where(self.is_log, v, 0.0)), v)

  def internal(self, values: np.ndarray) -> np.ndarray:
    """u [..., p] of natural values [..., p]; frozen coordinates become 0."""
    values = np.asarray(values, np.float64)
    with np.errstate(divide='ignore'):
      v = np.where(self.is_log, np.log(np.maximum(values, 1e-300)), values)
    moving = np.flatnonzero(self.moving)
    u = np.zeros_like(v)
    square = self.matrix[np.ix_(moving, moving)]
    u[..., moving] = np.linalg.solve(square, (v - self.offset)[..., moving, None])[..., 0]
    return u

  def draw_starts(self, count: int, seed: int) -> np.ndarray:
    """Starts [count, p] spread evenly over the start ranges (scrambled Sobol points; the first is the centre)."""
    from scipy.stats import qmc

    p = len(self.moving)
    points = qmc.Sobol(p, scramble=True, seed=seed).random(1 << max(0, (count - 1)).bit_length())[:count]
    points[0] = 0.5
    u = self.start[:, 0] + points * (self.start[:, 1] - self.start[:, 0])
    return np.clip(np.where(self.moving, u, 0.0), self.lower, self.upper)


def build(law, inputs: dict, outcome_scale: float, *, fixed=None, tied=None, bounds=None) -> Coordinates:
  """Coordinates of `law` for data with these input columns and this typical outcome.

  fixed {name: value}, tied {name: name it equals}, bounds {name: (low, high)} in natural units; contradictions are UserErrors.
  """
  fixed, bounds = dict(fixed or {}), dict(bounds or {})
  tied = {**dict(law.tied), **dict(tied or {})}
  parameters = law.parameters
  p = len(parameters)
  for name in (*fixed, *tied, *tied.values(), *bounds):
    law.index(name)
  for name, follows in tied.items():
    if name == follows or follows in tied:
      raise UserError(
        f'tied parameter {name!r} follows {follows!r}, which is itself tied: tie both to one free parameter'
      )
    if parameters[law.index(name)].transform != parameters[law.index(follows)].transform:
      raise UserError(f'{name!r} and {follows!r} live on different scales: tie parameters of one kind')
  for name, value in fixed.items():
    if name in tied:
      raise UserError(f'{name!r} is both fixed and tied: keep one of them')
    if not math.isfinite(value) or (parameters[law.index(name)].transform == 'log' and value <= 0):
      raise UserError(f'{name!r} fixed at {value!r}: needs a finite number{" above 0" if value <= 0 else ""}')

  matrix, offset = np.zeros((p, p)), np.zeros(p)
  lower, upper = np.zeros(p), np.zeros(p)
  start, reach = np.zeros((p, 2)), np.ones(p)
  moving = np.ones(p, bool)
  bounded_by = np.zeros((p, 2), bool)
  mean_log = {}
  for name, column in inputs.items():
    column = np.asarray(column, np.float64)
    mean_log[name] = float(np.log(column[column > 0]).mean()) if (column > 0).any() else 0.0

  def place(j: int, depth: int = 0) -> None:
    one = parameters[j]
    if one.name in fixed:
      value = fixed[one.name]
      offset[j] = math.log(value) if one.transform == 'log' else value
      moving[j] = False
      return
    if one.name in tied:
      moving[j] = False
      return
    low, high = bounds.get(one.name, one.bounds)
    if not low < high:
      raise UserError(f'bounds of {one.name!r} are {low!r} to {high!r}: the first must be below the second')
    bounded_by[j] = [math.isfinite(low), math.isfinite(high)]
    if one.transform == 'linear':
      factor = outcome_scale if one.of_outcome else 1.0
      matrix[j, j] = factor
      lower[j], upper[j] = low / factor, high / factor
      width = one.start[1] - one.start[0]
      start[j] = one.start
      reach[j] = max(width, 0.25)
      return
    shift = math.log(outcome_scale) if one.of_outcome else 0.0
    matrix[j, j] = 1.0
    start[j] = one.start
    reach[j] = 4.0
    bounded_by[j] = [low > 0, math.isfinite(high)]
    centred = bool(one.centre) and one.name not in bounds
    if centred or one.centre:
      shift -= sum(times(e)[0] * mean_log[c] for c, e in one.centre if times(e)[1] is None)
    for column, e in one.centre:
      factor, name = times(e)
      if name is None:
        continue
      if centred:
        matrix[j, law.index(name)] -= factor * mean_log[column]
      else:  # bounds are natural, so the coordinate is too; starts are centred at a middling exponent
        start[j] -= factor * mean_log[column] * float(np.mean(parameters[law.index(name)].start))
    offset[j] = shift
    edge = (one.start[0] - one.spread, one.start[1] + one.spread)
    lower[j] = math.log(low) - shift if low > 0 else (edge[0] if centred or not one.centre else edge[0] - 60)
    upper[j] = (
      math.log(high) - shift if math.isfinite(high) else (edge[1] if centred or not one.centre else edge[1] + 60)
    )

  for j in range(p):
    place(j)
  for j, one in enumerate(parameters):
    if one.name in tied:
      i = law.index(tied[one.name])
      matrix[j], offset[j] = matrix[i], offset[i]
  # a coefficient centred at an exponent's value sees that exponent's own map
  for j, one in enumerate(parameters):
    if not moving[j] or one.transform != 'log':
      continue
    row = matrix[j].copy()
    row[j] = 0.0
    if row.any():
      matrix[j] = np.where(np.arange(p) == j, 1.0, 0.0)
      for k in np.flatnonzero(row):
        matrix[j] += row[k] * matrix[k]
        offset[j] += row[k] * offset[k]
  start = np.clip(start, lower[:, None], upper[:, None])
  return Coordinates(law, matrix, offset, lower, upper, start, reach, moving, bounded_by)
