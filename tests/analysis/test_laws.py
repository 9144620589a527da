"""Every declared law: it can be fitted to its own data, reads as text, and limits to what it generalises."""

import numpy as np
import pytest

from analysis import coordinates, fit, laws, uncertainty
from analysis.laws import curves
from scaling.errors import UserError

RANGES = {
  'loss': (1, 4), 'kl': (0.5, 100), 'experts': (1, 512), 'granularity': (1, 32), 'width': (256, 4096), 'depth': (4, 64),
  'batch_size': (16, 4096), 'flops': (1e18, 1e22), 'params': (1e7, 1e10), 'tokens': (1e9, 1e11), 'unique_tokens': (1e8, 1e10),
  'weight_bits': (2, 16), 'activation_bits': (2, 16), 'kv_bits': (2, 16), 'post_bits': (2, 8),
  'params_non_vocabulary': (1e7, 1e10), 'params_vocabulary': (1e6, 1e9), 'lr_sum': (0.1, 20), 'annealing_area': (0.0, 0.3),
}  # fmt: skip
FLAT = [name for name in laws.names() if name != 'multi-power']


def columns(law, n=200, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda lo, hi: np.exp(rng.uniform(np.log(lo), np.log(hi), n)) if lo > 0 else rng.uniform(lo, hi, n)  # noqa: E731
  return {c: draw(*RANGES[c]) for c in law.inputs}


@pytest.mark.parametrize('name', FLAT)
def test_starts_give_finite_outcomes_and_text_is_there(name):
  law = laws.get(name)
  x = columns(law)
  c = coordinates.build(law, x, 2.5)
  values = uncertainty.evaluate(law, c.values(c.draw_starts(32, 1)), x)
  assert np.isfinite(values).mean() > 0.9
  assert law.formula and law.latex and law.source and all(p.name in law.names for p in law.parameters)


@pytest.mark.parametrize('name', ['kaplan', 'over-training', 'task-accuracy', 'overoptimisation-rl'])
def test_a_law_recovers_its_own_parameters(name):
  law = laws.get(name)
  x = columns(law)
  c = coordinates.build(law, x, 2.5)
  u = 0.5 * (c.start[:, 0] + c.start[:, 1])
  u = np.where(c.moving, u, 0.0)
  truth = c.values(u)
  y = uncertainty.evaluate(law, truth[None], x)[0]
  found = fit.fit({**x, law.outcome: y}, law, draws=0, probe=False, accept=('units',), starts=16)
  again = uncertainty.evaluate(law, np.array([list(found.estimate.values())]), columns(law, seed=9))[0]
  assert again == pytest.approx(uncertainty.evaluate(law, truth[None], columns(law, seed=9))[0], rel=1e-4)


def at(name, theta, x):
  law = laws.get(name)
  return uncertainty.evaluate(law, np.array([[theta[k] for k in law.names]]), x)[0]


def test_known_values():
  x = {'params': [1e9], 'tokens': [2e10]}
  theta = {'E': 1.69, 'A': 406.4, 'alpha': 0.34, 'B': 410.7, 'beta': 0.28}
  assert at('chinchilla', theta, x)[0] == pytest.approx(1.69 + 406.4 / 1e9**0.34 + 410.7 / 2e10**0.28, rel=1e-13)
  k = {'N_c': 6.4e13, 'D_c': 1.8e13, 'alpha_N': 0.076, 'alpha_D': 0.103}
  expected = ((6.4e13 / 1e9) ** (0.076 / 0.103) + 1.8e13 / 2e10) ** 0.103
  assert at('kaplan', k, x)[0] == pytest.approx(expected, rel=1e-12)
  lr = at('learning-rate', {'A': 1.79, 'alpha': 0.713, 'beta': 0.307}, x)
  assert lr[0] == pytest.approx(1.79 * 1e9**-0.713 * 2e10**0.307, rel=1e-12)


def test_farseer_is_the_published_form():
  s, q, shift, b_factor, b, q_shift, a_factor, a, e_shift = -0.02, 0.17, 0.5, 60.0, -0.1, -5.0, -0.1, 0.12, 0.4
  n, d = np.array([2e8, 1e9, 6e9]), np.array([4e9, 2e10, 1e11])
  published = np.exp(s * n**q + shift) + np.exp(b_factor * n**b + q_shift) * d ** -np.exp(a_factor * n**a + e_shift)
  at_1e9 = lambda factor, power: (factor * 1e9**power, -factor * power * 1e9**power)  # noqa: E731  value, fall
  floor, size, exponent = at_1e9(s, q), at_1e9(b_factor, b), at_1e9(a_factor, a)
  theta = {'F': np.exp(floor[0] + shift), 's': floor[1], 'q': q, 'K': np.exp(size[0] + q_shift), 'B': size[1], 'b': b}
  theta |= {'beta': np.exp(exponent[0] + e_shift), 'A': exponent[1], 'a': a}
  assert at('farseer', theta, {'params': n, 'tokens': d}) == pytest.approx(published, rel=1e-12)
  straight = {**theta, 'q': 0.0, 'b': 0.0, 'A': 0.0}  # power laws where nothing bends
  expected = theta['F'] * (n / 1e9) ** -theta['s'] + theta['K'] * (n / 1e9) ** -theta['B'] * d ** -theta['beta']
  assert at('farseer', straight, {'params': n, 'tokens': d}) == pytest.approx(expected, rel=1e-12)
  near = {**straight, 'q': 1e-9, 'b': -1e-9}
  assert at('farseer', near, {'params': n, 'tokens': d}) == pytest.approx(expected, rel=1e-7)


def test_farseer_is_recovered_from_noisy_losses():
  theta = {'F': 1.7, 's': 0.05, 'q': 0.1, 'K': 2000.0, 'B': 0.2, 'b': -0.1, 'beta': 0.35, 'A': 0.03, 'a': 0.1}
  rng = np.random.default_rng(0)
  n, d = (g.ravel() for g in np.meshgrid(np.geomspace(2e8, 6e9, 12), np.geomspace(2e9, 1e11, 12)))
  losses = at('farseer', theta, {'params': n, 'tokens': d}) * np.exp(rng.normal(0, 1e-3, n.size))
  found = fit.fit({'params': n, 'tokens': d, 'loss': losses}, 'farseer', draws=0, starts=32)
  bigger = {'params': np.array([1.2e10, 2.5e10]), 'tokens': np.array([1e11, 2e11])}
  assert at('farseer', found.estimate, bigger) == pytest.approx(at('farseer', theta, bigger), rel=5e-3)


def test_limits():
  theta = {'E': 1.7, 'A': 400.0, 'alpha': 0.34, 'B': 1000.0, 'beta': 0.3}
  x = {'params': np.array([1e7, 2e7]), 'tokens': np.array([1e10, 4e10])}
  plain = at('chinchilla', theta, x)
  repeated = {**theta, 'R_D': 15.0, 'R_N': 5.0}
  # fresh data: nothing is repeated, and no parameter is in excess
  assert at('data-constrained', repeated, {**x, 'unique_tokens': x['tokens']}) == pytest.approx(plain, rel=1e-12)
  worse = at('data-constrained', repeated, {**x, 'unique_tokens': x['tokens'] / 40})
  assert (worse > plain).all()
  # a long half-life makes repeats as good as new: expm1 keeps the digits that 1 - exp loses
  forever = at('data-constrained', {**repeated, 'R_D': 1e15, 'R_N': 1e15}, {**x, 'unique_tokens': x['tokens'] / 40})
  assert forever == pytest.approx(plain, rel=1e-9)
  many_bits = at('precision-weights', {**theta, 'gamma_weight': 0.3}, {**x, 'weight_bits': [64.0]})
  assert many_bits == pytest.approx(plain, rel=1e-12)
  steps = at('steps-to-loss', {'S_min': 1e4, 'B_crit': 1e3}, {'batch_size': [10.0, 1e3, 1e6]})
  examples = steps * [10.0, 1e3, 1e6]
  assert (steps / 1e4 - 1) * (examples / 1e7 - 1) == pytest.approx(np.ones(3))


def test_a_break_changes_the_slope():
  theta = {'a': 0.0, 'b': 1e3, 'c_0': 0.1, 'c_1': 0.3, 'd_1': 1e8, 'f_1': 0.05}
  y = at('broken-params', theta, {'params': np.array([1e5, 1e6, 1e10, 1e11])})
  assert np.log10(y[1] / y[0]) == pytest.approx(-0.1, abs=1e-6)
  assert np.log10(y[3] / y[2]) == pytest.approx(-0.4, abs=1e-6)


def test_curve_columns_match_sums_over_steps():
  rng = np.random.default_rng(0)
  lr = np.concatenate([np.linspace(0, 1e-3, 20), np.full(30, 1e-3), np.linspace(1e-3, 1e-4, 50)])
  table = {'curve': np.array(['a'] * 3), 'step': np.array([25, 60, 99]), 'loss': rng.uniform(2, 3, 3)}
  theta = {'L_0': 2.0, 'A': 0.5, 'alpha': 0.5, 'B': 300.0, 'C': 2.0, 'beta': 0.6, 'gamma': 0.6}
  full = curves.with_schedules(table, {'a': lr}, segments=None, decay=0.9)
  total = np.cumsum(lr)
  expected, areas = [], []
  for s in table['step']:
    k = np.arange(1, s + 1)
    gain = 1 - (1 + 2.0 * lr[k] ** -0.6 * (total[s] - total[k - 1])) ** -0.6
    expected.append(2.0 + 0.5 * total[s] ** -0.5 + 300.0 * ((lr[k] - lr[k - 1]) * gain).sum())
    areas.append(sum((lr[j - 1] - lr[j]) * 0.9 ** (i - j) for i in range(1, s + 1) for j in range(1, i + 1)))
  assert at('multi-power', theta, full) == pytest.approx(expected, rel=1e-12)
  assert full['annealing_area'] == pytest.approx(areas, rel=1e-10)
  merged = curves.with_schedules(table, {'a': lr}, segments=20)
  assert at('multi-power', theta, merged) == pytest.approx(expected, rel=2e-3)
  with pytest.raises(UserError, match='outside its schedule'):
    curves.with_schedules({**table, 'step': np.array([1, 2, 100])}, {'a': lr})


def test_unknown_names_are_told_with_near_ones():
  with pytest.raises(UserError, match="did you mean 'chinchilla'"):
    laws.get('chinchila')
  with pytest.raises(UserError, match='already registered'):
    laws.register(laws.get('kaplan'))
