"""What a user sees of a fit: bad input named with its rows, JSON that comes back, predictions, the printed summary."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import fit, laws, uncertainty, verbs
from scaling.errors import UserError

TRUTH = {'E': 1.8, 'A': 480.0, 'alpha': 0.35, 'B': 2100.0, 'beta': 0.37}


def frame(n_runs=16, checkpoints=1, noise=0.003, seed=0):
  rng = np.random.default_rng(seed)
  runs = np.repeat(np.arange(n_runs), checkpoints)
  params = np.repeat(10 ** rng.uniform(7, 9.5, n_runs), checkpoints)
  tokens = 10 ** rng.uniform(9, 11, n_runs * checkpoints)
  y = uncertainty.evaluate(
    laws.get('chinchilla'), np.array([list(TRUTH.values())]), {'params': params, 'tokens': tokens}
  )[0]
  shared = noise * rng.normal(size=n_runs)[runs] if checkpoints > 1 else 0.0
  y = y * np.exp(shared + 0.3 * noise * rng.normal(size=len(y)))
  return pd.DataFrame({'run_id': [f'r{i:02d}' for i in runs], 'params': params, 'tokens': tokens, 'loss': y})


def quick(table, law='chinchilla', **more):
  return fit.fit(table, law, **{'draws': 0, 'probe': False, **more})


def test_json_round_trip_keeps_everything(tmp_path):
  found = fit.fit(frame(), 'chinchilla', draws=50)
  keys = {
    'law',
    'formula',
    'settings',
    'n_points',
    'n_runs',
    'estimate',
    'se',
    'ci95',
    'objective',
    'certificate',
    'frontier',
    'seconds',
  }
  record = json.loads(json.dumps(found.to_json(), allow_nan=False))
  assert keys <= set(record)
  assert {'gradient_norm', 'starts', 'share_at_best', 'hessian_condition', 'at_bound', 'unidentified'} <= set(
    record['certificate']
  )
  path = fit.save([found], tmp_path / 'fits.json')
  (again,) = fit.load(path)
  assert again.estimate == found.estimate and again.summary() == found.summary()
  x = {'params': [1e9, 1e10], 'tokens': 1e11}
  assert again.predict(x) == pytest.approx(found.predict(x), rel=1e-14)
  assert np.allclose(again.predict_interval(x), found.predict_interval(x), rtol=1e-8)
  path.write_text('{}x')
  with pytest.raises(UserError, match='not a list of fits'):
    fit.load(path)
  with pytest.raises(UserError, match='no file'):
    fit.load(tmp_path / 'nothing.json')


def test_predictions_lie_in_their_intervals():
  found = fit.fit(frame(), 'chinchilla', draws=100)
  x = {'params': 1e10, 'tokens': [1e11, 2e11]}
  low, high = found.predict_interval(x)
  wide_low, wide_high = found.predict_interval(x, new_run=True)
  assert (low < found.predict(x)).all() and (found.predict(x) < high).all()
  assert (wide_low <= low * 1.001).all() and (wide_high >= high * 0.999).all()
  assert found.frontier['a']['value'] + found.frontier['b']['value'] == pytest.approx(1.0)
  target = found.derive(lambda t: t['E'] + t['A'] / 1e9 ** t['alpha'])
  assert target['ci95'][0] < target['value'] < target['ci95'][1]


def test_summary_says_what_matters():
  text = fit.fit(frame(checkpoints=10), 'chinchilla', draws=0).summary()
  assert 'certified' in text and 'starts' in text and '160 points of 16 runs' in text
  assert 'times those by row' in text


BAD = [
  (lambda f: f.assign(loss=f.loss.where(f.index != 3)), 'row 3: loss is not a finite number'),
  (lambda f: f.assign(tokens=f.tokens.where(f.index > 1, 0.0)), 'rows 0, 1: tokens is zero or negative'),
  (lambda f: f.assign(loss=f.loss.where(f.index != 2, -1.0)), 'row 2: loss is zero or negative'),
  (lambda f: f.assign(loss=f.loss.where(f.index != 5, 25.0)), 'row 5: loss above 13'),
  (lambda f: pd.concat([f, f.iloc[[4]]], ignore_index=True), 'row 16: the same inputs and outcome as row 4'),
]


@pytest.mark.parametrize('spoil,message', BAD)
def test_bad_rows_are_named_and_dropped_only_if_asked(spoil, message):
  table = spoil(frame())
  with pytest.raises(UserError, match=message):
    quick(table)
  found = quick(table, drop=True)
  assert found.n_points + len(found.settings['rows_dropped']) == len(table)
  assert all(d['reason'] for d in found.settings['rows_dropped'])


@pytest.mark.parametrize(
  'spoil,message',
  [
    (lambda f: f.head(4), '4 usable points for 5 free parameters'),
    (lambda f: f.assign(params=1e8), r'params is 1e\+08 in all 16 rows'),
    (lambda f: f.assign(loss=2.5), 'loss is 2.5 in all 16 rows'),
    (lambda f: f.assign(tokens=f.tokens / 1e6), 'given in millions or billions'),
    (lambda f: f.rename(columns={'loss': 'los'}), "unknown column 'loss': did you mean 'los'"),
    (lambda f: f.assign(params='big'), "column 'params' holds 'big': needs numbers"),
  ],
)
def test_hopeless_tables_are_refused(spoil, message):
  with pytest.raises(UserError, match=message):
    quick(spoil(frame()))


@pytest.mark.parametrize(
  'settings_,message',
  [
    ({'loss': 'hubber'}, "unknown loss 'hubber'"),
    ({'delta': 0}, 'delta must be above 0'),
    ({'fixed': {'gamma': 1}}, "unknown parameter of law 'chinchilla' 'gamma'"),
    ({'fixed': {'A': -1.0}}, "'A' fixed at -1.0"),
    ({'tied': {'beta': 'beta'}}, 'is itself tied'),
    ({'tied': {'beta': 'A'}}, 'different scales'),
    ({'bounds': {'alpha': (1.0, 0.5)}}, 'the first must be below the second'),
    ({'resample': 'rows'}, 'unknown way to resample'),
    ({'accept': ('all',)}, 'unknown check to accept'),
  ],
)
def test_wrong_settings_are_one_line(settings_, message):
  with pytest.raises(UserError, match=message) as caught:
    quick(frame(), **settings_)
  assert '\n' not in str(caught.value)


def test_foreign_columns_and_few_points():
  table = frame().rename(columns={'params': 'N', 'loss': 'bpb'})
  found = quick(table, columns={'params': 'N', 'loss': 'bpb'})
  assert found.settings['columns'] == {'params': 'N', 'tokens': 'tokens', 'loss': 'bpb'}
  assert any('intervals say little' in w for w in quick(frame(n_runs=6)).warnings)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.2, 5.0), st.integers(0, 10**6))
def test_scaling_the_loss_scales_the_law(factor, seed):
  table = frame(seed=seed)
  a = quick(table, 'power-params', accept=('units',), starts=16)
  b = quick(table.assign(loss=table.loss * factor), 'power-params', accept=('units',), starts=16)
  assert b.objective == pytest.approx(a.objective, rel=1e-8)
  assert b.predict({'params': 3e8})[0] == pytest.approx(factor * a.predict({'params': 3e8})[0], rel=1e-5)


def test_a_certificate_with_nulls_is_read_back_and_printed():
  record = quick(frame()).to_json()
  for name in ('gradient_norm', 'hessian_condition', 'decrement'):
    record['certificate'][name] = None
  record['se'] = dict.fromkeys(record['se'])
  record['objective'] = record['residual_sd'] = None
  record['frontier']['a'] = {'value': None, 'se': None, 'ci95': [None, None]}
  text = fit.Fit.from_json(record).summary()
  assert 'Hessian condition inf' in text and '-inf to inf' in text


def test_dropped_rows_are_named_in_the_summary():
  data = frame()
  data.loc[[2, 5], 'loss'] = np.nan
  assert 'dropped: rows 2, 5: loss is not a finite number' in quick(data, drop=True).summary()


def test_repeated_runs_set_a_floor_to_the_interval_of_a_run():
  rng = np.random.default_rng(0)
  one = {k: np.array(v) for k, v in frame().items() if k in ('params', 'tokens', 'loss')}
  data = {k: np.concatenate([v, v]) for k, v in one.items()}
  data['loss'] = data['loss'] * np.exp(0.01 * rng.standard_normal(len(data['loss'])))
  found = fit.fit(data, 'chinchilla', loss='log-squared', probe=False)
  assert found.settings['replicates']['degrees'] == len(one['loss'])
  assert found.settings['replicates']['sd'] == pytest.approx(0.01, rel=0.3)
  assert 'repeated runs' in found.summary()
  at = {'params': 1e9, 'tokens': 1e10}
  narrow = found.predict_interval(at, new_run=True)
  found.settings['replicates']['sd'] = 10 * found.residual_sd
  wide = found.predict_interval(at, new_run=True)
  assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])


@pytest.mark.parametrize('empty', ({'params': [], 'tokens': [], 'loss': []}, {}, []))
def test_an_empty_table_is_a_plain_mistake(empty):
  with pytest.raises(UserError):
    fit.fit(empty, 'chinchilla')


def test_settings_on_the_command_line_reach_the_fit(tmp_path):
  path = tmp_path / 'runs.csv'
  pd.DataFrame(frame()).to_csv(path, index=False)
  text = verbs.fit_verb(str(path), fixed='E=1.7', tied='beta=alpha', bounds='alpha=0.1:0.9', profile='alpha', starts=8)
  assert '(fixed)' in text and '(= alpha)' in text and 'profile: alpha 95%' in text
  for wrong in ({'fixed': 'E'}, {'fixed': 'E=x'}, {'bounds': 'E=1'}, {'profile': 'gamma'}, {'accept': 'unit'}):
    with pytest.raises(UserError):
      verbs.fit_verb(str(path), starts=8, **wrong)
