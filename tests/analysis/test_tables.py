"""Tables hold what the records say, in CSV at full precision, and in Markdown and LaTeX that parse."""

import csv
import io
import re

import numpy as np
import pandas as pd
import pytest
import synthetic_study

from analysis import context as contexts
from analysis import fit as fitting
from analysis import tables
from analysis.tables.spec import Column, Table
from scaling.errors import UserError


@pytest.fixture(scope='module')
def context():
  frame = synthetic_study.rows(noise=0.002)
  used = frame.query('final and not held_out')
  study = {
    'counting': 'params_non_embedding',
    'name': 'toy',
    'baselines': [{'name': 'bigram', 'loss': 2.5, 'bits_per_byte': 3.6, 'parameters': 66049}],
  }
  return contexts.Context(study, frame, [fitting.fit(used, 'chinchilla', probe=False, starts=8)])


@pytest.mark.parametrize('name', list(tables.TABLES))
def test_each_table_is_written_three_ways(context, name, tmp_path):
  entry = tables.get(name)
  assert entry.about.endswith('.') and entry.needs
  table = entry.table(context)
  paths = table.save(tmp_path)
  assert [p.suffix for p in paths] == ['.csv', '.md', '.tex']
  rows = list(csv.reader(io.StringIO(paths[0].read_text(encoding='utf-8'))))
  assert rows[0] == [c.key for c in table.columns] and len(rows) == len(table.frame) + 1
  lines = paths[1].read_text(encoding='utf-8').splitlines()
  assert len({len(re.findall(r'(?<!\\)\|', line)) for line in lines}) == 1 and len(lines) == len(table.frame) + 2
  tex = paths[2].read_text(encoding='utf-8')
  assert tex.count('\\toprule') == tex.count('\\midrule') == tex.count('\\bottomrule') == 1
  body = tex.split('\\midrule')[1].split('\\bottomrule')[0].strip().splitlines()
  assert len(body) == len(table.frame)
  assert all(len(re.findall(r'(?<!\\)&', line)) == len(table.columns) - 1 and line.endswith('\\\\') for line in body)
  assert not re.search(r'(?<!\\)[%#]', tex) and all(ord(c) < 0x2000 for c in tex)


def test_runs_have_baselines_and_full_precision(context):
  table = tables.get('runs').table(context)
  assert len(table.frame) == 24 + 1 and table.frame['name'].iloc[-1] == 'bigram'
  again = pd.read_csv(io.StringIO(table.csv()))
  finals = context.finals.set_index('run_id')['loss']
  for run_id, loss in zip(again['run_id'], again['loss'], strict=True):
    assert pd.isna(run_id) or float(loss) == pytest.approx(finals[run_id], rel=1e-15)


def test_runs_include_diverged_ones(context):
  frame = context.frame.copy()
  first = frame['run_id'] == frame['run_id'].iloc[0]
  frame.loc[first, ['diverged', 'status', 'final']] = [True, 'diverged', True]
  frame = frame[~(first & (frame['step'] > 100))]
  rows = tables.get('runs').table(contexts.Context({}, frame, [])).frame
  assert 'diverged' in set(rows['status'])


def test_shapes_have_one_row_a_size(context):
  frame = tables.get('shapes').table(context).frame
  assert frame['params_non_embedding'].tolist() == sorted(synthetic_study.SIZES) and (frame['runs'] == 4).all()
  assert (frame['batch_tokens'] == 1024).all()


def test_fits_optima_and_predictions_agree_with_the_fit(context):
  fit = context.fits[0]
  rows = tables.get('fits').table(context).frame.set_index('parameter')
  for name, value in fit.estimate.items():
    assert rows.loc[name, 'estimate'] == value and rows.loc[name, 'low'] == fit.ci95[name][0]
  optima = tables.get('optima').table(context).frame
  np.testing.assert_allclose(
    fit.predict({'params': optima['params'], 'tokens': optima['tokens']}), optima['loss'], rtol=1e-12
  )
  assert (optima['beyond'] == 'extrapolated').any() and not (optima['beyond'] == 'extrapolated').all()
  held = tables.get('predictions').table(context).frame
  assert len(held) == 2 and held['error'].abs().max() < 0.02


def test_sizes_of_chinchilla_3_are_optimal_at_their_budget(context):
  from analysis import frontier

  frame = tables.get('chinchilla-3').table(context).frame
  n, _ = frontier.optimal(context.joint, frame['flops'])
  np.testing.assert_allclose(n, frame['params'], rtol=1e-4)


def test_checklist_says_what_is_missing():
  rows = synthetic_study.rows().query('final')[['params', 'tokens', 'loss']]
  fit = fitting.fit(rows, 'chinchilla', probe=False, starts=8)
  frame = tables.get('checklist').table(contexts.Context({}, rows, [fit])).frame.set_index('item')['report']
  assert 'missing' in frame['Held-out prediction'] and 'missing' in frame['Tokenizer, data, evaluation']
  assert repr(fit.estimate['alpha']) in frame['Parameters at full precision']


def test_special_characters_survive():
  frame = pd.DataFrame({'name': ['a|b_c & 50% #1 {x} ~^\\'], 'x': [3.2e21], 'ok': [True], 'none': [np.nan]})
  table = Table(
    'T',
    'C',
    frame,
    [Column('name', 'Na_me'), Column('x', 'X', 'flops'), Column('ok', 'OK'), Column('none', 'N', 'number')],
    'toy',
  )
  assert table.cells() == [['a|b_c & 50% #1 {x} ~^\\', '3.2×10²¹', 'yes', '–']]
  assert r'a\|b_c' in table.markdown()
  tex = table.latex()
  assert (
    r'a|b\_c \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}' in tex
    and r'3.2$\times$10$^{21}$' in tex
  )


def test_unknown_and_unavailable_tables():
  with pytest.raises(UserError, match="did you mean 'optima'"):
    tables.get('optimum')
  bare = contexts.Context({}, pd.DataFrame({'params': [1e6], 'tokens': [1e7], 'loss': [3.0]}), [])
  for name in (
    'fits',
    'optima',
    'predictions',
    'approaches',
    'chinchilla-2',
    'chinchilla-3',
    'chinchilla-a9',
    'gpt3-2.1',
    'checklist',
  ):
    with pytest.raises(contexts.Unavailable):
      tables.get(name).table(bare)
