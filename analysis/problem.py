"""What a fit hands to the solver: a law, rows, and a loss by its name."""

import dataclasses
import math

import numpy as np

from analysis import coordinates, laws, solver, uncertainty
from scaling.errors import UserError, unknown

LOSSES = ('squared', 'huber', 'l1', 'asymmetric')


@dataclasses.dataclass(frozen=True)
class Problem:
  """A fit's data and settings in the solver's terms, kept so that refits (bootstrap, profile) need nothing else."""

  law: laws.Law
  rows: object
  space: str
  loss: str
  delta: float
  tilt: tuple[float, float]
  coordinates: coordinates.Coordinates
  u: np.ndarray | None = None

  @property
  def target(self) -> np.ndarray:
    return np.log(self.rows.outcome) if self.space == 'log' else self.rows.outcome

  @property
  def wide(self) -> float:
    """The delta at which far starts begin: residuals of order one in log space."""
    return 1.0 if self.space == 'log' else max(float(np.ptp(self.rows.outcome)), 1e-300)

  def minimise(
    self, start, weights=None, target=None, coords=None, cold=True, lower=None, upper=None, **options
  ) -> solver.Solution:
    """Solves lanes [l, p] of starts; weights and target may be per lane [l, n]."""
    c = coords or self.coordinates
    lanes = len(start)
    box = lambda side: np.broadcast_to(side, (lanes, len(c.lower)))  # noqa: E731
    lower = box(np.where(c.moving, c.lower, 0.0)) if lower is None else lower
    upper = box(np.where(c.moving, c.upper, 0.0)) if upper is None else upper
    return solver.minimise(
      self.law,
      self.space,
      self.rows.inputs,
      self.target if target is None else target,
      self.rows.weights if weights is None else weights,
      start,
      lower,
      upper,
      c.matrix,
      c.offset,
      delta=self.delta,
      wide=self.wide if cold else None,
      tilt=self.tilt,
      reach=c.reach,
      **options,
    )


def smooth(problem: Problem) -> Problem:
  """The problem with kinks rounded over a twentieth of its typical residual: for draws, whose spread is far above that.

  A least-absolute-deviation fit's resamples, solved to the kink itself, take thirty times as long.
  """
  if problem.loss not in ('l1', 'asymmetric'):
    return problem
  width = 0.05 * float(np.median(np.abs(uncertainty.residuals(problem, problem.u))))
  return dataclasses.replace(problem, delta=max(problem.delta, width))


def parse_loss(
  name: str | None, law: laws.Law, delta: float, space: str | None, tau: float
) -> tuple[str, str, float, tuple]:
  """(loss, space, delta, tilt) of names like 'log-huber', 'l1', 'log-asymmetric'."""
  if name is None:
    name = 'log-huber' if law.space == 'log' else 'huber'
  plain = name.removeprefix('log-')
  if plain not in LOSSES:
    raise unknown('loss', name, [*LOSSES, *(f'log-{x}' for x in LOSSES)])
  if space is None:
    space = 'log' if name.startswith('log-') else 'raw'
  elif space not in ('log', 'raw'):
    raise UserError(f"space must be 'log' or 'raw', not {space!r}")
  elif name.startswith('log-') and space == 'raw':
    raise UserError(f"loss {name!r} is in log space: drop 'log-' or space='raw'")
  if not delta > 0:
    raise UserError(f'delta must be above 0, not {delta!r}')
  if not 0 < tau < 1:
    raise UserError(f'tau must be between 0 and 1, not {tau!r}')
  if plain == 'squared':
    return plain, space, math.inf, (1.0, 1.0)
  if plain == 'huber':
    return plain, space, float(delta), (1.0, 1.0)
  # residual = prediction - outcome: the tau-quantile weighs predictions that are too low by tau
  tilt = (1.0, 1.0) if plain == 'l1' else (2 * tau, 2 * (1 - tau))
  return plain, space, math.nan, tilt
