"""Backtest, specification curve, law against law and next run, on tables drawn from known laws."""

import numpy as np
import pandas as pd
import pytest

from analysis import backtest, compare, fit, frontier, next_run, specification
from scaling.errors import UserError

TRUTH = {'E': 1.7, 'A': 400.0, 'alpha': 0.34, 'B': 410.0, 'beta': 0.28}


def loss(params, tokens, truth=TRUTH):
  return truth['E'] + truth['A'] * params ** -truth['alpha'] + truth['B'] * tokens ** -truth['beta']


def table(noise=0.002, seed=0, truth=TRUTH) -> pd.DataFrame:
  rng = np.random.default_rng(seed)
  n, d = np.meshgrid(np.geomspace(1e6, 1e9, 7), np.geomspace(2e8, 2e10, 5), indexing='ij')
  n, d = n.ravel(), d.ravel()
  return pd.DataFrame({
    'run_id': [f'r{i}' for i in range(len(n))],
    'params': n,
    'params_non_embedding': n,
    'params_total': n + 3e4 * n**0.4,
    'tokens': d,
    'flops_kaplan': 6 * n * d,
    'flops_exact': 6 * d * (n + 3e4 * n**0.4),
    'loss': loss(n, d, truth) * np.exp(noise * rng.standard_normal(len(n))),
  })  # fmt: skip


@pytest.fixture(scope='module')
def fitted():
  return fit.fit(table(), 'chinchilla', bootstrap=200, loss='log-squared')


def test_backtest_prefers_the_true_law_and_its_intervals_cover():
  found = backtest.backtest(table(), ['kaplan', 'chinchilla'], cuts=4, loss='log-squared')
  assert found.summary['law'].iloc[0] == 'chinchilla'
  best = found.summary.set_index('law').loc['chinchilla']
  assert best['median_error'] < 0.01
  assert 0.8 <= best['coverage'] <= 1.0
  assert (found.rows['reach'] > 1).all()
  near = backtest.backtest(table(), ['chinchilla'], cuts=4, ahead=4, loss='log-squared')
  assert near.rows['reach'].max() <= 4


def test_backtest_refuses_a_table_that_no_cut_divides():
  few = table().head(6)
  with pytest.raises(UserError, match='no cut'):
    backtest.backtest(few, ['chinchilla'])
  with pytest.raises(UserError, match='above 0'):
    backtest.backtest(table(), ['chinchilla'], cuts=[-1.0])


def test_specification_curve_spans_choices_and_brackets_the_truth():
  choices = {'law': ['chinchilla'], 'exclude': ['none']}
  seen = []
  curve = specification.run(table(), choices, progress=lambda i, n: seen.append((i, n)))
  rows = curve.rows
  assert len(rows) == 4 * 3 * 2 * 2  # loss x window x counting of params x counting of FLOPs
  assert seen[-1] == (24, 24)
  assert rows['estimate'].is_monotonic_increasing
  assert set(curve.by_axis['axis']) == {'loss', 'window', 'params', 'flops'}
  truth = TRUTH['beta'] / (TRUTH['alpha'] + TRUTH['beta'])
  plain = rows[(rows['params'] == 'params_non_embedding') & (rows['flops'] == 'flops_kaplan')]
  assert abs(plain['estimate'].median() - truth) < 0.05
  # FLOPs that grow slower than 6 N D leave more of them for parameters.
  exact = rows[(rows['params'] == 'params_non_embedding') & (rows['flops'] == 'flops_exact')]
  assert exact['estimate'].median() > plain['estimate'].median()


def test_specification_reads_the_optimum_at_a_budget():
  choices = {'law': ['chinchilla'], 'loss': ['log-squared'], 'window': ['all'], 'exclude': ['none']}
  choices |= {'params': ['params_non_embedding'], 'flops': ['flops_kaplan']}
  curve = specification.run(table(0.0005), choices, target='params', flops=1e20)
  exact = fit.fit(table(0.0005), 'chinchilla', loss='log-squared', cluster='run_id', starts=16)
  assert curve.rows['estimate'].iloc[0] == pytest.approx(frontier.optimal(exact, 1e20)[0][0], rel=0.01)


def test_specification_keeps_a_fit_that_failed_with_its_reason():
  tiny = table()[lambda t: t['params'] <= t['params'].unique()[1]].head(7)
  curve = specification.run(tiny, {'law': ['chinchilla', 'kaplan'], 'window': ['all', 'drop smallest params']})
  failed = curve.rows[curve.rows['estimate'].isna()]
  assert len(failed) and failed['message'].str.len().min() > 0
  with pytest.raises(UserError, match='unknown axis'):
    specification.run(table(), {'colour': ['red']})
  with pytest.raises(UserError, match='needs a budget'):
    specification.run(table(), target='params')


def test_compare_finds_a_known_multiplier_and_crossover(fitted):
  # Twice the data efficiency and the parameter efficiency: the same loss at a quarter of the compute.
  better = {**TRUTH, 'A': TRUTH['A'] * 2 ** -TRUTH['alpha'], 'B': TRUTH['B'] * 2 ** -TRUTH['beta']}
  second = fit.fit(table(seed=1, truth=better), 'chinchilla', bootstrap=200, loss='log-squared')
  found = compare.compare(second, fitted, [1e18, 1e20], ('better', 'plain'))
  assert (found.budgets['gap_low'] > 0).all()
  assert ((found.budgets['multiplier_low'] < 4) & (found.budgets['multiplier_high'] > 4)).all()
  assert found.crossover['flops'] is None
  assert 'better: first' in found.summary()

  # A recipe that starts ahead and has a higher floor is overtaken.
  early = {**better, 'E': TRUTH['E'] + 0.08}
  third = fit.fit(table(seed=2, truth=early), 'chinchilla', bootstrap=200, loss='log-squared')
  found = compare.compare(third, fitted, [1e16, 1e24])
  grid = np.geomspace(1e16, 1e24, 2000)
  n = (TRUTH['alpha'] * TRUTH['A'] / (TRUTH['beta'] * TRUTH['B'])) ** (1 / 0.62) * (grid / 6) ** (0.28 / 0.62)
  truth = grid[np.argmin(np.abs(loss(n, grid / 6 / n) - loss(n, grid / 6 / n, early)))]
  assert found.crossover['ci95'][0] < truth < found.crossover['ci95'][1]
  with pytest.raises(UserError, match='two budgets'):
    compare.compare(fitted, fitted, [1e20])


def test_next_run_goes_for_what_the_target_needs(fitted):
  candidates = next_run.grid(fitted, (1e6, 1e10), (2e8, 2e11), 5)
  at = {'params': 7e10, 'tokens': 1.4e12}
  made = next_run.plan(fitted, candidates, at=at, budget=1e22)
  assert made.candidates['gain_per_flop'].is_monotonic_decreasing
  assert made.sequence['sd_after'].is_monotonic_decreasing
  assert made.sequence['flops_total'].iloc[-1] <= 1e22
  # The same again by brute force: the predicted reduction is what a refit with the run really gives.
  best = made.candidates.sort_values('gain').iloc[-1]
  extra = table()
  rows = pd.DataFrame({'run_id': ['new'], 'params': [best['params']], 'tokens': [best['tokens']]})
  rows['loss'] = loss(rows['params'], rows['tokens'])
  more = fit.fit(pd.concat([extra, rows], ignore_index=True), 'chinchilla', bootstrap=400, loss='log-squared')
  after = np.std(np.log(more.predict_samples(at)[:, 0]))
  assert after < 0.75 * made.sd
  assert 'train next' in made.summary()


def test_next_run_stops_when_told(fitted):
  candidates = next_run.grid(fitted, (1e6, 1e9), (2e8, 2e10), 3)
  at = {'params': 1e9, 'tokens': 2e10}
  assert next_run.plan(fitted, candidates, at=at, tolerance=1.0).sequence.empty
  assert 'no candidate fits' in next_run.plan(fitted, candidates, at=at, budget=1.0).stop
  for wrong in ({'target': 'losss'}, {'target': 'log_params'}, {'at': {'params': 1.0}}):
    with pytest.raises(UserError):
      next_run.plan(fitted, candidates, **wrong)
