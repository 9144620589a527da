"""Two recipes' laws against each other: gap in loss against compute, crossover, and compute multiplier, with intervals."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from analysis import frontier
from scaling.errors import UserError

GRID = 400


@dataclasses.dataclass
class Comparison:
  """first and second: the laws compared, each at its own compute-optimal split.

  budgets: flops, loss_first, loss_second, gap (second - first, above 0 where the first is better), gap_low, gap_high,
  multiplier (compute the second needs for the loss that the first has, over the first's), multiplier_low, _high.
  crossover: {'flops', 'ci95', 'share'}: where the gap changes sign inside the compared range; share of draws that cross.
  """

  first: str
  second: str
  budgets: pd.DataFrame
  crossover: dict[str, Any]

  def summary(self) -> str:
    """A few lines for a person."""
    lines = [f'{self.first} against {self.second}, each at its compute-optimal split:']
    for row in self.budgets.itertuples():
      side = 'first' if row.gap_low > 0 else 'second' if row.gap_high < 0 else 'neither for sure'
      lines.append(
        f'  {row.flops:.2e} FLOPs: loss {row.loss_first:.4f} and {row.loss_second:.4f}, '
        f'gap {row.gap:+.4f} [{row.gap_low:+.4f}, {row.gap_high:+.4f}], '
        f'multiplier {row.multiplier:.3g} [{row.multiplier_low:.3g}, {row.multiplier_high:.3g}]; better: {side}'
      )
    c = self.crossover
    if c['flops'] is None:
      lines.append(f'  no crossover in this range at the estimates; {c["share"]:.0%} of the draws have one')
    else:
      low, high = c['ci95']
      lines.append(f'  crossover at {c["flops"]:.2e} FLOPs [{low:.2e}, {high:.2e}]; {c["share"]:.0%} of draws cross')
    return '\n'.join(lines)


def compare(first: Any, second: Any, flops: Any, names: tuple[str, str] = ('first', 'second')) -> Comparison:
  """Compares two fits at budgets `flops`; the crossover is looked for between the least and the largest.

  Draws of the two fits are taken as independent. Raises UserError for laws that are not of params and tokens, or budgets
  that are not two positive numbers or more.
  """
  budgets = np.unique(np.atleast_1d(np.asarray(flops, float)))
  if len(budgets) < 2 or not (np.isfinite(budgets).all() and budgets[0] > 0):
    raise UserError(
      f'flops {np.asarray(flops).tolist()}: give at least two budgets above 0, for instance 1e18 and 1e22'
    )
  # The multiplier needs the second's loss beyond the range, on both sides.
  grid = np.geomspace(budgets[0] / 1e4, budgets[-1] * 1e4, GRID)
  inside = (grid >= budgets[0]) & (grid <= budgets[-1])
  curves = [(_optimal_loss(fit, grid), _optimal_loss(fit, grid, frontier.samples(fit))) for fit in (first, second)]
  draws = min(len(curves[0][1]), len(curves[1][1]))
  rng = np.random.default_rng(0)  # each fit's draws may be ordered; pair them at random
  sampled = [c[1][rng.permutation(len(c[1]))[:draws]] for c in curves]
  log_grid, at = np.log(grid), np.log(budgets)

  rows = {'flops': budgets}
  value = [np.interp(at, log_grid, c[0]) for c in curves]
  many = [np.array([np.interp(at, log_grid, row) for row in s]) for s in sampled]
  rows |= {'loss_first': value[0], 'loss_second': value[1], 'gap': value[1] - value[0]}
  rows['gap_low'], rows['gap_high'] = np.quantile(many[1] - many[0], [0.025, 0.975], axis=0)
  rows['multiplier'] = _multiplier(log_grid, curves[1][0], value[0], at)
  spread = np.array([_multiplier(log_grid, s, v, at) for s, v in zip(sampled[1], many[0], strict=True)])
  rows['multiplier_low'], rows['multiplier_high'] = np.quantile(spread, [0.025, 0.975], axis=0, method='nearest')

  here = _crossing(log_grid[inside], (curves[1][0] - curves[0][0])[inside])
  found = [_crossing(log_grid[inside], (b - a)[inside]) for a, b in zip(*sampled, strict=True)]
  found = np.array([x for x in found if x is not None])
  interval = np.exp(np.quantile(found, [0.025, 0.975])).tolist() if len(found) >= 20 else [0.0, np.inf]
  crossover = {'flops': None if here is None else float(np.exp(here)), 'ci95': interval, 'share': len(found) / draws}
  return Comparison(names[0], names[1], pd.DataFrame(rows), crossover)


def _optimal_loss(fit: Any, flops: np.ndarray, theta: dict[str, np.ndarray] | None = None) -> np.ndarray:
  """Loss [budgets], or [draws, budgets], at each budget's own optimum."""
  if theta is None:
    params, tokens = frontier.optimal(fit, flops)
    return frontier.evaluate(fit, {'params': params, 'tokens': tokens})
  if not theta:
    raise UserError(
      f'fit of {fit.law!r} has no draws of its parameters: fit again with this version, or with --bootstrap'
    )
  params, tokens = frontier.optimal(fit, flops, theta)
  loss = [
    frontier.evaluate(fit, {'params': p, 'tokens': t}, {k: v[i] for k, v in theta.items()})
    for i, (p, t) in enumerate(zip(params, tokens, strict=True))
  ]
  return np.array(loss)


def _multiplier(log_grid: np.ndarray, loss: np.ndarray, target: np.ndarray, at: np.ndarray) -> np.ndarray:
  """exp(log C2 - log C1) where the decreasing curve `loss` reaches `target`; inf where it never does."""
  falling = np.minimum.accumulate(loss)
  found = np.interp(-target, -falling, log_grid, left=-np.inf, right=np.inf)
  return np.exp(found - at)


def _crossing(log_grid: np.ndarray, gap: np.ndarray) -> float | None:
  """The last sign change of `gap`, between grid points by a straight line; None without one."""
  changes = np.flatnonzero(np.sign(gap[:-1]) * np.sign(gap[1:]) < 0)
  if not len(changes):
    return None
  i = changes[-1]
  return float(log_grid[i] + (log_grid[i + 1] - log_grid[i]) * gap[i] / (gap[i] - gap[i + 1]))
