"""The solver against scipy and against properties that any optimum has; it must work where jax runs in 32 bits."""

import numpy as np
import pytest
import scipy.optimize

from analysis import coordinates, fit, laws, solver, uncertainty
from analysis.laws import Law, coefficient, exponent, floor, free, log, power

TRUTH = {'E': 1.8, 'A': 480.0, 'alpha': 0.35, 'B': 2100.0, 'beta': 0.37}
LINE = Law('line', ('x',), (free('a', (-1, 1)), free('b', (-1, 1))), lambda t, x: t['a'] + t['b'] * x['x'], 'a + b x', 'a + bx', 'none',
           outcome='y', space='raw', signed_inputs=('x',))  # fmt: skip


def study(noise=0.01, seed=0, n=60):
  rng = np.random.default_rng(seed)
  x = {'params': 10 ** rng.uniform(7, 10, n), 'tokens': 10 ** rng.uniform(9, 11.5, n)}
  y = uncertainty.evaluate(laws.get('chinchilla'), np.array([[TRUTH[k] for k in laws.get('chinchilla').names]]), x)[0]
  return {**x, 'loss': y * np.exp(noise * rng.standard_t(3, n))}


def test_noise_free_data_give_back_the_truth():
  found = fit.fit(study(noise=0.0), 'chinchilla', draws=0, probe=False)
  assert found.certificate['certified']
  for name, value in TRUTH.items():
    assert found.estimate[name] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
  'loss,delta', [('log-squared', 1e-3), ('log-huber', 1e-3), ('log-huber', 1e-5), ('squared', 1.0), ('huber', 0.05)]
)
def test_no_point_is_better_than_the_certified_one(loss, delta):
  data = study()
  found = fit.fit(data, 'chinchilla', loss=loss, delta=delta, draws=0, probe=False)
  assert found.certificate['certified'] and found.certificate['share_at_best'] == 1.0

  def objective(p):
    f = p[0] + np.exp(p[1] - p[2] * np.log(data['params'] / 1e9)) + np.exp(p[3] - p[4] * np.log(data['tokens'] / 1e10))
    r = np.log(f) - np.log(data['loss']) if loss.startswith('log') else f - data['loss']
    if 'squared' in loss:
      return (0.5 * r**2).sum()
    return np.where(abs(r) <= delta, 0.5 * r**2, delta * (abs(r) - delta / 2)).sum()

  e = found.estimate
  here = [
    e['E'],
    np.log(e['A']) - e['alpha'] * np.log(1e9),
    e['alpha'],
    np.log(e['B']) - e['beta'] * np.log(1e10),
    e['beta'],
  ]
  assert objective(here) == pytest.approx(found.objective, rel=1e-9)
  better = scipy.optimize.minimize(
    objective, here, method='Nelder-Mead', options={'xatol': 1e-10, 'fatol': 1e-16, 'maxiter': 4000}
  )
  assert better.fun >= found.objective * (1 - 1e-9)


def test_least_absolute_deviation_is_an_exact_vertex():
  rng = np.random.default_rng(3)
  x = rng.normal(size=41)
  y = 0.3 + 0.7 * x + rng.standard_cauchy(41) * 0.1
  found = fit.fit({'x': x, 'y': y}, LINE, loss='l1', draws=0)
  # as a linear programme
  n = len(x)
  cost = np.r_[0, 0, np.ones(2 * n)]
  a_eq = np.hstack([np.c_[np.ones(n), x], np.eye(n), -np.eye(n)])
  exact = scipy.optimize.linprog(cost, A_eq=a_eq, b_eq=y, bounds=[(None, None)] * 2 + [(0, None)] * (2 * n))
  assert found.objective == pytest.approx(exact.fun, rel=1e-12)
  assert np.sum(np.abs(y - found.predict({'x': x})) < 1e-12) == 2


@pytest.mark.parametrize('tau', [0.1, 0.5, 0.9])
def test_asymmetric_loss_is_the_quantile(tau):
  rng = np.random.default_rng(4)
  x = rng.normal(size=300)
  y = 1 + x + rng.normal(size=300)
  found = fit.fit({'x': x, 'y': y}, LINE, loss='asymmetric', tau=tau, draws=0, probe=False)
  below = np.mean(y < found.predict({'x': x}) - 1e-9)
  assert abs(below - tau) <= 2 / 300


def test_weights_count_as_repeats():
  data = study(n=30)
  times = np.arange(30) % 3
  repeated = {k: np.repeat(v, times) for k, v in data.items()}
  a = fit.fit({**data, 'w': times.astype(float)}, 'chinchilla', weights='w', draws=0, probe=False)
  b = fit.fit(repeated, 'chinchilla', accept=('duplicates',), draws=0, probe=False)
  assert a.objective == pytest.approx(b.objective, rel=1e-12)
  assert a.estimate['alpha'] == pytest.approx(b.estimate['alpha'], rel=1e-7)


def test_units_of_the_inputs_do_not_matter():
  data = study()
  a = fit.fit(data, 'chinchilla', draws=0, probe=False)
  b = fit.fit(
    {**data, 'params': data['params'] / 1e6, 'tokens': data['tokens'] / 1e3}, 'chinchilla', draws=0, probe=False
  )
  assert a.objective == pytest.approx(b.objective, rel=1e-10)
  assert b.estimate['A'] == pytest.approx(a.estimate['A'] / 1e6 ** a.estimate['alpha'], rel=1e-6)


def test_fixed_tied_and_bounded_parameters_hold():
  data = study()
  free_fit = fit.fit(data, 'chinchilla', draws=0, probe=False)
  fixed = fit.fit(data, 'chinchilla', fixed={'A': 400.0, 'beta': 0.3}, draws=0, probe=False)
  assert (fixed.estimate['A'], fixed.estimate['beta']) == (pytest.approx(400.0, rel=1e-12), 0.3)
  assert fixed.se['A'] == 0 and fixed.objective > free_fit.objective
  tied = fit.fit(data, 'chinchilla', tied={'beta': 'alpha'}, draws=0, probe=False)
  assert tied.estimate['beta'] == tied.estimate['alpha']
  assert tied.objective == pytest.approx(fit.fit(data, 'chinchilla-tied', draws=0, probe=False).objective, rel=1e-12)
  bounded = fit.fit(data, 'chinchilla', bounds={'E': (0.0, 1.0), 'B': (1.0, 1e3)}, draws=0, probe=False)
  assert bounded.estimate['E'] <= 1.0 and bounded.estimate['B'] <= 1e3 * (1 + 1e-12)
  assert set(bounded.certificate['at_bound']) & {'E', 'B'}
  assert any('bound' in w for w in bounded.warnings)


def test_solving_leaves_the_process_in_32_bits():
  import jax
  import jax.numpy as jnp

  fit.fit(study(n=20), 'chinchilla', draws=0, probe=False)
  assert not jax.config.jax_enable_x64
  assert jnp.ones(2).dtype == jnp.float32


def test_lanes_do_not_touch_each_other():
  law = laws.get('chinchilla')
  data = study()
  inputs = {k: data[k] for k in law.inputs}
  c = coordinates.build(law, inputs, 2.0)
  starts = c.draw_starts(40, 0)
  boxes = [np.tile(side, (40, 1)) for side in (c.lower, c.upper)]
  args = (law, 'log', inputs, np.log(data['loss']), np.ones(60))
  many = solver.minimise(*args, starts, *boxes, c.matrix, c.offset, delta=1e-3, wide=1.0)
  starts[1:] = np.nan
  one = solver.minimise(*args, starts, *boxes, c.matrix, c.offset, delta=1e-3, wide=1.0)
  assert one.objective[0] == pytest.approx(many.objective[0], rel=1e-12)
  assert not np.isfinite(one.objective[1:]).any() and not one.certified[1:].any()


def test_a_user_adds_a_law_in_a_few_lines():
  law = Law(
    name='floor-and-log', inputs=('params',), parameters=(floor('E'), coefficient('A', params='-alpha'), exponent('alpha')),
    predict=lambda t, x: t['E'] + t['A'] * power(x, 'params', -t['alpha']) + 0.0 * log(x, 'params'),
    formula='E + A / params^alpha', latex='', source='here',
  )  # fmt: skip
  x = np.logspace(6, 9, 12)
  found = fit.fit({'params': x, 'loss': 1.5 + 40 / x**0.25}, law, draws=0)
  assert found.estimate['alpha'] == pytest.approx(0.25, rel=1e-6)
  again = fit.Fit.from_json(found.to_json(), law)
  assert again.predict({'params': 1e10}) == pytest.approx(found.predict({'params': 1e10}))
