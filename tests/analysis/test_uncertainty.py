"""Uncertainty: against linear theory, against simulated truth, and on data that cannot tell."""

import numpy as np
import pytest

from analysis import fit, laws, uncertainty
from analysis.laws import Law, free
from scaling.errors import UserError

LINE = Law('line', ('x',), (free('a', (-1, 1)), free('b', (-1, 1))), lambda t, x: t['a'] + t['b'] * x['x'], 'a + b x', 'a + bx', 'none',
           outcome='y', space='raw', signed_inputs=('x',))  # fmt: skip


def line(n=200, seed=0, runs=None, shared=0.0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=n)
  codes = np.arange(n) if runs is None else np.arange(n) % runs
  if runs:
    x = rng.normal(size=runs)[codes] + 0.1 * x
  y = 0.5 + 2.0 * x + 0.2 * rng.normal(size=n) + shared * rng.normal(size=n)[codes]
  return {'x': x, 'y': y, 'run_id': codes}


def test_sandwich_profile_and_bootstraps_agree_with_linear_theory():
  data = line()
  found = fit.fit(data, LINE, loss='squared', draws=0)
  design = np.c_[np.ones(200), data['x']]
  beta, rss, *_ = np.linalg.lstsq(design, data['y'], rcond=None)
  classic = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * rss[0] / 198)
  assert list(found.estimate.values()) == pytest.approx(beta, rel=1e-9)
  assert list(found.se.values()) == pytest.approx(classic, rel=0.12)
  ci = uncertainty.profile(found, 'b')['ci']
  assert ci == pytest.approx([beta[1] - 1.97 * classic[1], beta[1] + 1.97 * classic[1]], abs=0.15 * classic[1])
  for kind in ('cluster', 'row', 'residual', 'parametric'):
    samples, info = uncertainty.bootstrap(found.problem, 400, kind)
    assert info['certified'] == 400
    assert samples.std(0) == pytest.approx(classic, rel=0.2), kind


def test_rows_of_one_run_do_not_count_as_many():
  data = line(n=300, runs=20, shared=0.5)
  found = fit.fit(data, LINE, loss='squared', draws=0)
  assert found.n_runs == 20
  assert found.se['b'] > 2 * found.se_by_row['b']
  assert any('standard errors by run_id' in w for w in found.warnings)
  by_run, _ = uncertainty.bootstrap(found.problem, 300, 'cluster')
  parametric, _ = uncertainty.bootstrap(found.problem, 300, 'parametric')
  assert found.se['b'] == pytest.approx(by_run[:, 1].std(), rel=0.5)
  assert parametric[:, 1].std() == pytest.approx(by_run[:, 1].std(), rel=0.5)


def test_intervals_cover():
  """A small coverage run; `benchmarks/calibration.py` is the full one."""
  hits = []
  for seed in range(60):
    found = fit.fit(line(n=30, seed=seed), LINE, loss='huber', delta=0.1, draws=0, probe=False, starts=4)
    low, high = found.ci95['b']
    hits.append(low <= 2.0 <= high)
  assert np.mean(hits) >= 0.88


def test_what_the_data_cannot_tell_is_named():
  rng = np.random.default_rng(0)
  x = 10 ** rng.uniform(7, 9, 30)
  flat = fit.fit({'params': x, 'loss': 2.0 * np.exp(0.01 * rng.normal(size=30))}, 'power-params')
  text = ' '.join(flat.certificate['unidentified'])
  assert 'A: unbounded' in text
  assert 'unidentified' in flat.summary()
  clear = fit.fit({'params': x, 'loss': (1.5 + 300 / x**0.34) * np.exp(0.001 * rng.normal(size=30))}, 'power-params')
  assert not clear.certificate['unidentified']


def test_a_profile_is_lowest_at_the_estimate_and_follows_the_bounds():
  rng = np.random.default_rng(1)
  x = 10 ** rng.uniform(7, 9, 40)
  found = fit.fit(
    {'params': x, 'loss': (1.5 + 300 / x**0.34) * np.exp(0.003 * rng.normal(size=40))}, 'power-params', draws=0
  )
  for name in found.estimate:
    p = uncertainty.profile(found, name)
    assert p['objective'].min() >= found.objective * (1 - 1e-9)
    assert p['ci'][0] < found.estimate[name] < p['ci'][1]
  with pytest.raises(UserError, match='a profile needs the data'):
    uncertainty.profile(fit.Fit.from_json(found.to_json()), 'alpha')


def test_replicate_noise_is_the_scatter_between_seeds():
  rng = np.random.default_rng(2)
  n = np.repeat(np.logspace(7, 9, 50), 4)
  noise = uncertainty.replicate_noise(
    {'params': n, 'loss': 2 * (n / 1e8) ** -0.05 * np.exp(0.01 * rng.normal(size=200))}, 'power-params'
  )
  assert noise['degrees'] == 150 and noise['groups'] == 50
  assert noise['sd_log'] == pytest.approx(0.01, rel=0.2)
  assert np.isnan(uncertainty.replicate_noise({'params': n[::4], 'loss': n[::4]}, 'power-params')['sd'])


def test_too_few_clusters_are_refused():
  found = fit.fit(line(n=20, runs=2), LINE, loss='squared', draws=0, probe=False)
  with pytest.raises(UserError, match='at least 3'):
    uncertainty.bootstrap(found.problem, 10, 'cluster')


def test_evaluate_names_missing_columns():
  with pytest.raises(UserError, match='tokens not given'):
    uncertainty.evaluate(laws.get('kaplan'), np.ones((1, 4)), {'params': 1e9})
