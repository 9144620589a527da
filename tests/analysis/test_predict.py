"""Predictions follow the law, cost nothing at the optimum, and cannot be changed once registered."""

import json

import numpy as np
import pandas as pd
import pytest
import synthetic_study
from test_frontier import fixed_fit

from analysis import fit as fitting
from analysis import laws, predict, verbs
from scaling.errors import UserError

T = synthetic_study.TRUTH


@pytest.fixture(scope='module')
def fit():
  rows = synthetic_study.rows().query('final and not held_out')
  return fitting.fit(rows, 'chinchilla')


def test_optimum_and_its_intervals(fit):
  out = predict.optimum(fit, [1e11, 1e13])
  np.testing.assert_allclose(6 * out['params'] * out['tokens'], out['flops'])
  for name in ('params', 'tokens', 'loss', 'tokens_per_param'):
    assert (out[f'{name}_low'] < out[name]).all() and (out[name] < out[f'{name}_high']).all()
  wide = np.log(out['params_high'] / out['params_low'])
  assert wide[1] > wide[0]


def test_departure_costs_nothing_at_the_best_size_and_more_beyond():
  exact = fixed_fit(samples=np.array([[T[k] for k in laws.get('chinchilla').names]] * 25))
  best = predict.optimum(exact, 1e12)['params'][0]
  out = predict.departure(exact, 1e12, best * np.array([0.1, 0.5, 1, 2, 10]))
  assert out['excess'][2] == pytest.approx(0, abs=1e-12) and out['overspend'][2] == pytest.approx(1, abs=1e-4)
  assert (np.diff(out['excess'][:3]) < 0).all() and (np.diff(out['excess'][2:]) > 0).all()
  # overspend: a budget smaller by that factor, spent well, gives the same loss
  again = predict.optimum(exact, 1e12 / out['overspend'][0])
  assert again['loss'][0] == pytest.approx(out['loss'][0], rel=1e-5)


def test_bad_numbers(fit):
  for bad in (-1, 0, np.nan, np.inf):
    with pytest.raises(UserError, match='above 0'):
      predict.optimum(fit, bad)
  with pytest.raises(UserError, match='such as 1e21'):
    predict.optimum(fit, 'lots')
  with pytest.raises(UserError, match='give --params, --tokens'):
    predict.loss(fit, {})


def test_register_and_score(fit, tmp_path):
  path = tmp_path / 'prediction.json'
  record = predict.register(
    fit, {'params': [1e6, 2e6], 'tokens': [2e6, 2e6]}, path, note='before', date='2026-01-02T03:04:05Z'
  )
  assert record['date'] == '2026-01-02T03:04:05Z' and len(record['sha256']) == 64
  with pytest.raises(UserError, match='already written'):
    predict.register(fit, {'params': [1e6], 'tokens': [2e6]}, path)
  measured = pd.DataFrame(
    {'params': [1.001e6], 'tokens': [2e6], 'loss': [float(synthetic_study.loss(1e6, 2e6))], 'name': ['big']}
  )
  scored = predict.score(path, measured)
  assert scored['run'].tolist() == ['big'] and scored['inside'].all() and abs(scored['error'][0]) < 0.02
  with pytest.raises(UserError, match='no row answers'):
    predict.score(path, measured.assign(params=5e6))
  changed = json.loads(path.read_text())
  changed['cells'][0]['loss'] += 0.01
  path.write_text(json.dumps(changed))
  with pytest.raises(UserError, match='changed after it was registered'):
    predict.score(path, measured)


def test_verbs_fit_predict_score(tmp_path):
  rows = synthetic_study.rows()
  rows.to_csv(tmp_path / 'runs.csv', index=False)
  out = tmp_path / 'fits.json'
  text = verbs.fit_verb(str(tmp_path / 'runs.csv'), 'chinchilla', out=str(out))
  assert 'alpha' in text and '22 points' in text  # final rows, held-out ones left out
  assert 'compute-optimal' in verbs.predict_verb(str(out), flops='1e12,1e13')
  assert 'overspend' in verbs.predict_verb(str(out), flops='1e12', params='1e5')
  text = verbs.predict_verb(str(out), params='1179648', tokens='2e6', register=str(tmp_path / 'p.json'))
  assert 'sha256' in text
  assert '1 of 1 inside' in verbs.predict_verb(str(tmp_path / 'p.json'), score=str(tmp_path / 'runs.csv'))
  for bad in ({}, {'params': '1e6'}, {'flops': '1e9', 'params': '1', 'tokens': '1'}, {'flops': 'x'}):
    with pytest.raises(UserError):
      verbs.predict_verb(str(out), **bad)
  with pytest.raises(UserError, match="unknown law 'chinchila': did you mean 'chinchilla'"):
    verbs.fit_verb(str(tmp_path / 'runs.csv'), 'chinchila')
  with pytest.raises(UserError, match="no column 'tokens'"):
    verbs.fit_verb(str(tmp_path / 'runs.csv'), 'chinchilla', select='params, loss')
