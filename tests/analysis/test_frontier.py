"""The three approaches find the optimum of a known law, and say what they leave out."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import synthetic_study
from scipy import optimize

from analysis import fit as fitting
from analysis import frontier, laws
from scaling.errors import UserError

T = synthetic_study.TRUTH
A_TRUE = T['beta'] / (T['alpha'] + T['beta'])


def fixed_fit(law='chinchilla', estimate=None, samples=None):
  """A Fit at given parameters, without fitting."""
  declared = laws.get(law)
  estimate = estimate or {k: T[k] for k in declared.names}
  return fitting.Fit(
    declared.name, declared.formula, {'space': 'log'}, 20, 20, estimate, {}, {}, 0.0, {}, {}, 0.0, samples=samples
  )


def isoflop_grid(budgets=(1e11, 3e11, 1e12, 3e12), sizes=7, spread=1.6, noise=0.0, seed=0):
  """Rows at exact budgets, sizes centred on the optimum."""
  fit, random, rows = fixed_fit(), np.random.default_rng(seed), []
  for c in budgets:
    best, _ = frontier.optimal(fit, c)
    n = best[0] * np.exp(np.linspace(-spread, spread, sizes))
    d = c / 6 / n
    rows.append(
      pd.DataFrame(
        {'params': n, 'tokens': d, 'loss': synthetic_study.loss(n, d) * np.exp(noise * random.standard_normal(sizes))}
      )
    )
  return pd.concat(rows, ignore_index=True)


@hypothesis.given(
  st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(0.5, 1e4), st.floats(0.5, 1e4), st.floats(1e10, 1e25)
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_closed_form_is_the_minimum(alpha, beta, a, b, flops):
  fit = fixed_fit(estimate={'E': 1.0, 'A': a, 'alpha': alpha, 'B': b, 'beta': beta})
  n, d = frontier.optimal(fit, flops)
  assert np.isclose(6 * n[0] * d[0], flops, rtol=1e-12)
  value = lambda x: a * np.exp(-alpha * x) + b * np.exp(-beta * (np.log(flops / 6) - x))  # noqa: E731
  found = optimize.minimize_scalar(value, bracket=(np.log(n[0]) - 1, np.log(n[0]) + 1), tol=1e-12)
  assert value(np.log(n[0])) <= found.fun * (1 + 1e-9)


def test_kaplan_closed_form_and_numeric_agree():
  fit = fixed_fit('kaplan', {'N_c': 8.8e13, 'D_c': 5.4e13, 'alpha_N': 0.076, 'alpha_D': 0.095})
  c = np.array([1e18, 1e21])
  exact, _ = frontier.optimal(fit, c)
  numeric = frontier._least(fit.declared, {k: np.asarray(v) for k, v in fit.estimate.items()}, c / 6)
  np.testing.assert_allclose(exact, numeric, rtol=1e-4)


def test_resamples_give_one_row_each():
  draws = np.array([[T[k] for k in laws.get('chinchilla').names]] * 3) * np.array([[1.0], [1.01], [0.99]])
  fit = fixed_fit(samples=draws)
  n, d = frontier.optimal(fit, [1e11, 1e12], frontier.samples(fit))
  assert n.shape == d.shape == (3, 2)
  np.testing.assert_allclose(n[0], frontier.optimal(fit, [1e11, 1e12])[0])


@pytest.mark.parametrize('method', ['parabola', 'akima'])
def test_isoflop_recovers_the_exponent(method):
  found = frontier.isoflop(isoflop_grid(noise=0.0), method=method, bootstrap=20, noise=1e-4)
  assert len(found.budgets) == 4 and not found.messages
  assert found.estimate['a'] == pytest.approx(A_TRUE, abs=0.02)
  assert found.estimate['a'] + found.estimate['b'] == pytest.approx(1, abs=1e-6)


def test_isoflop_interval_covers():
  hits = 0
  for seed in range(40):
    found = frontier.isoflop(isoflop_grid(noise=0.003, seed=seed), bootstrap=200, seed=seed)
    low, high = found.interval('a')
    hits += low <= A_TRUE <= high
  assert hits >= 34


def test_isoflop_on_a_grid_of_sizes_and_tokens():
  sizes, tokens = np.geomspace(3e3, 1e6, 9), np.geomspace(1e5, 3e7, 8)
  n, d = (v.ravel() for v in np.meshgrid(sizes, tokens))
  frame = pd.DataFrame({'params': n, 'tokens': d, 'loss': synthetic_study.loss(n, d)})
  found = frontier.isoflop(frame, noise=1e-4, bootstrap=50)
  assert found.estimate['a'] == pytest.approx(A_TRUE, abs=0.05)


def test_isoflop_leaves_out_concave_and_edge_minima():
  frame = isoflop_grid()
  c = frontier.compute(frame)
  first, second = sorted(np.unique(c.round(-6)))[:2]
  flip = np.isclose(c, first, rtol=1e-3)
  frame.loc[flip, 'loss'] = 6 - frame.loc[flip, 'loss']
  edge = np.isclose(c, second, rtol=1e-3) & (
    frame['params'] > frame.loc[np.isclose(c, second, rtol=1e-3), 'params'].median()
  )
  found = frontier.isoflop(frame[~edge])
  assert len(found.budgets) == 2
  assert any('concave' in m for m in found.messages)
  assert any('beyond the largest size' in m or 'the largest' in m for m in found.messages)
  assert [bool(curve['why']) for curve in found.curves] == [True, True, False, False]


def test_one_odd_run_does_not_bend_the_parabola():
  frame = isoflop_grid(sizes=9)
  clean = frontier.isoflop(frame, bootstrap=0).estimate['a']
  frame.loc[3, 'loss'] *= 1.05
  assert frontier.isoflop(frame, bootstrap=0).estimate['a'] == pytest.approx(clean, abs=0.01)


def test_isoflop_says_what_it_lacks():
  with pytest.raises(UserError, match='no column'):
    frontier.isoflop(pd.DataFrame({'params': [1.0], 'loss': [2.0]}))
  few = isoflop_grid().query('params > 0').iloc[:2]
  with pytest.raises(UserError, match='isoflop needs 3 sizes'):
    frontier.isoflop(few)
  with pytest.raises(UserError, match="take 'parabola' or 'akima'"):
    frontier.isoflop(isoflop_grid(), method='cubic')


def curves(sizes, points=400):
  """Ideal training curves: at each moment the loss of the law."""
  rows = []
  for n in sizes:
    d = np.geomspace(1e3, 1e9, points)
    rows.append(pd.DataFrame({'run_id': f'{n:.0f}', 'params': n, 'tokens': d, 'loss': synthetic_study.loss(n, d)}))
  return pd.concat(rows)


def test_envelope_recovers_the_exponent_and_drops_the_edges():
  found = frontier.envelope(curves(np.geomspace(1e3, 1e6, 25)), bootstrap=30)
  assert found.estimate['a'] == pytest.approx(A_TRUE, abs=0.02)
  assert found.budgets['params'].min() > 1e3 and found.budgets['params'].max() < 1e6
  assert 'left out' in found.messages[0]
  low, high = found.interval('a')
  assert low < A_TRUE < high


def test_envelope_needs_curves_of_four_sizes():
  with pytest.raises(UserError, match='at least 4 sizes, and 3 have'):
    frontier.envelope(curves([1e3, 1e4, 1e5]))
  with pytest.raises(UserError, match='run_id'):
    frontier.envelope(curves([1e3, 1e4, 1e5, 1e6]).drop(columns='run_id'))


def test_disagreement_table():
  frame = curves(np.geomspace(1e3, 1e6, 12)).assign(held_out=False)
  found, missing = frontier.approaches(frame, fixed_fit())
  table = frontier.disagreement(found, 1e12)
  assert table['approach'].tolist()[-1] == 'parametric' and table['params_ratio'].iloc[-1] == 1
  assert table['a'].iloc[-1] == pytest.approx(A_TRUE, abs=1e-6)
  assert len(found) + len(missing) == 3
