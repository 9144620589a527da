"""Which run to train next: how much each candidate would reduce the variance of a target, per FLOP, and when to stop.

Draws of a fit's parameters give the joint spread of the target g and of each candidate's outcome f. To first order a run
whose own noise has variance s^2 leaves var(g) - cov(g, f)^2 / (var(f) + s^2): the Bayesian linear design of Chaloner and
Verdinelli 1995, section 2. Runs are chosen one after another, each given the ones before.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis import frontier
from scaling.errors import UserError, unknown

TARGETS = ('loss', 'log_params')


@dataclasses.dataclass
class Plan:
  """target: what is to be known better; sd: its standard deviation now (relative for a loss, of log N* for log_params).

  candidates: the law's inputs, flops, sd_after (with that run alone), gain (share of variance removed), gain_per_flop,
  sorted by the last. sequence: the runs to train in order, with flops, flops_total and sd_after each.
  stop: why the sequence ends where it does.
  """

  target: str
  sd: float
  candidates: pd.DataFrame
  sequence: pd.DataFrame
  stop: str

  def summary(self, most: int = 8) -> str:
    """A few lines for a person."""
    lines = [f'{self.target}: standard deviation now {self.sd:.4g}', 'train next, in this order:']
    if self.sequence.empty:
      lines.append('  nothing')
    for i, row in enumerate(self.sequence.head(most).itertuples(index=False), 1):
      inputs = ', '.join(f'{k} {getattr(row, k):.4g}' for k in self.sequence.columns if k not in _OWN)
      lines.append(f'  {i}. {inputs}: {row.flops:.2e} FLOPs, leaves {row.sd_after:.4g}')
    return '\n'.join([*lines, f'stop: {self.stop}'])


_OWN = ('flops', 'flops_total', 'sd_after', 'gain', 'gain_per_flop')


def plan(
  fit: Any,
  candidates: Mapping[str, Any] | pd.DataFrame,
  *,
  target: str = 'loss',
  at: Mapping[str, float] | None = None,
  flops: float | None = None,
  budget: float | None = None,
  tolerance: float | None = None,
  least_gain: float = 0.01,
  most: int = 20,
) -> Plan:
  """Ranks candidate runs for a target.

  candidates: the law's input columns (params, tokens; others if the law has them), and `flops` where it is not
  6 params tokens. target: 'loss' at the inputs `at`, or 'log_params', the compute-optimal size at `flops`.
  budget: FLOPs to spend at most. tolerance: stop when the target's standard deviation is at or below it.
  least_gain: stop when the best run left would remove less than this share of the variance that remains.
  A candidate may be taken more than once: a repeat with another seed is a run too.
  """
  law = fit.declared
  frame = pd.DataFrame(dict(candidates)) if not isinstance(candidates, pd.DataFrame) else candidates
  missing = [name for name in law.inputs if name not in frame.columns]
  if missing:
    raise UserError(f'candidates have no column {missing[0]!r}: law {law.name!r} needs {", ".join(law.inputs)}')
  if frame.empty:
    raise UserError('no candidate runs: give at least one')
  inputs = {name: frame[name].to_numpy(float) for name in law.inputs}
  cost = _cost(frame)
  draws = frontier.samples(fit)
  if len(next(iter(draws.values()), ())) < 50:
    raise UserError(f'fit of {fit.law!r} has too few draws of its parameters: fit again with --bootstrap=1000')
  goal = _goal(fit, draws, target, at, flops)
  outcomes = frontier.evaluate(fit, inputs, draws)
  outcomes = np.log(outcomes) if fit.space == 'log' else outcomes
  usable = np.isfinite(outcomes).all(axis=1) & np.isfinite(goal)
  outcomes, goal = outcomes[usable] - outcomes[usable].mean(0), goal[usable] - goal[usable].mean()

  noise = fit.residual_sd**2
  count = len(goal) - 1
  between = outcomes.T @ outcomes / count  # covariance of candidates' outcomes [m, m]
  toward = outcomes.T @ goal / count  # covariance of each with the target [m]
  variance = first = float(goal @ goal / count)
  alone = toward**2 / (np.diag(between) + noise)
  ranked = pd.DataFrame({**inputs, 'flops': cost, 'sd_after': np.sqrt(np.maximum(first - alone, 0))})
  ranked['gain'] = alone / first
  ranked['gain_per_flop'] = ranked['gain'] / cost

  rows, spent, stop = [], 0.0, f'after {most} runs: more were not asked for'
  for _ in range(most):
    if tolerance is not None and np.sqrt(variance) <= tolerance:
      stop = f'the standard deviation {np.sqrt(variance):.4g} has reached {tolerance:g}'
      break
    gain = toward**2 / (np.diag(between) + noise)
    open_ = cost <= (np.inf if budget is None else budget - spent)
    if not open_.any():
      stop = f'no candidate fits into the {budget - spent:.3g} FLOPs that are left of {budget:.3g}'
      break
    worth = open_ & (gain >= least_gain * variance)
    if not worth.any():
      stop = f'no run left removes {least_gain:.0%} of the variance that remains'
      break
    i = int(np.argmax(np.where(worth, gain / cost, -1.0)))
    variance = max(variance - gain[i], 0.0)
    scale = between[i, i] + noise
    row = between[:, i].copy()
    toward = toward - row * toward[i] / scale
    between = between - np.outer(row, row) / scale
    spent += float(cost[i])
    rows.append({
      **{k: v[i] for k, v in inputs.items()}, 'flops': cost[i], 'flops_total': spent, 'sd_after': np.sqrt(variance)
    })  # fmt: skip
  columns = [*inputs, 'flops', 'flops_total', 'sd_after']
  ranked = ranked.sort_values('gain_per_flop', ascending=False, ignore_index=True)
  return Plan(_label(target, at, flops), float(np.sqrt(first)), ranked, pd.DataFrame(rows, columns=columns), stop)


def grid(fit: Any, params: tuple[float, float], tokens: tuple[float, float], points: int = 8) -> pd.DataFrame:
  """A geometric grid of candidate params and tokens between the given ends."""
  for name, (low, high) in (('params', params), ('tokens', tokens)):
    if not 0 < low <= high:
      raise UserError(f'candidate {name} from {low:g} to {high:g}: give two numbers above 0, the smaller first')
  if set(fit.declared.inputs) != {'params', 'tokens'}:
    raise UserError(f'law {fit.law!r} takes {", ".join(fit.declared.inputs)}: give a table of candidates with these')
  n, d = np.meshgrid(np.geomspace(*params, points), np.geomspace(*tokens, points), indexing='ij')
  return pd.DataFrame({'params': n.ravel(), 'tokens': d.ravel()})


def _cost(frame: pd.DataFrame) -> np.ndarray:
  if 'flops' in frame.columns or not {'params', 'tokens'} <= set(frame.columns):
    if 'flops' not in frame.columns:
      raise UserError('candidates need a column flops, as they have not both params and tokens')
    return frame['flops'].to_numpy(float)
  return frontier.compute(frame)


def _goal(fit: Any, draws: dict[str, np.ndarray], target: str, at: Any, flops: float | None) -> np.ndarray:
  if target == 'loss':
    if not at:
      raise UserError('target loss needs its inputs, for instance --params=7e9 --tokens=1.4e11')
    absent = [name for name in fit.declared.inputs if name not in at]
    if absent:
      raise UserError(f'target loss needs {absent[0]!r} too: law {fit.law!r} takes {", ".join(fit.declared.inputs)}')
    with np.errstate(invalid='ignore'):
      return np.log(frontier.evaluate(fit, {k: at[k] for k in fit.declared.inputs}, draws)[:, 0])
  if target == 'log_params':
    if not (flops and flops > 0):
      raise UserError('target log_params needs a budget: --flops=1e22')
    return np.log(frontier.optimal(fit, flops, draws)[0][:, 0])
  raise unknown('target', target, TARGETS)


def _label(target: str, at: Mapping[str, float] | None, flops: float | None) -> str:
  if target == 'loss':
    return 'log loss at ' + ', '.join(f'{k}={v:.4g}' for k, v in at.items())
  return f'log of compute-optimal params at {flops:.3g} FLOPs'
