"""Tables are read as they are, mapped by SQL that sees nothing else, and refused in one clear line."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest

from analysis import table
from scaling.errors import UserError


@pytest.fixture
def frame():
  return pd.DataFrame(
    {
      'Model Size': [1e6, 2e6, 4e6],
      'Training FLOP': [6e13, 2.4e14, 9.6e14],
      'loss': [3.5, 3.2, 3.0],
      'tag': list('abc'),
    }
  )


@pytest.mark.parametrize('kind', ['csv', 'tsv', 'parquet', 'jsonl', 'json'])
def test_formats_hold_the_same_table(tmp_path, frame, kind):
  path = tmp_path / f'runs.{kind}'
  if kind in ('csv', 'tsv'):
    frame.to_csv(path, index=False, sep='\t' if kind == 'tsv' else ',')
  elif kind == 'parquet':
    frame.to_parquet(path)
  else:
    frame.to_json(path, orient='records', lines=kind == 'jsonl')
  pd.testing.assert_frame_equal(table.read(path), frame, check_dtype=False)


@hypothesis.given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=20))
@hypothesis.settings(max_examples=50, deadline=None)
def test_csv_numbers_survive_to_the_last_bit(tmp_path_factory, values):
  path = tmp_path_factory.mktemp('csv') / 'x.csv'
  pd.DataFrame({'loss': values}).to_csv(path, index=False)
  np.testing.assert_array_equal(table.read(path)['loss'].to_numpy(), np.array(values))


def test_select_maps_and_derives(tmp_path, frame):
  path = tmp_path / 'runs.csv'
  frame.to_csv(path, index=False)
  out = table.read(path, select='"Model Size" AS params, "Training FLOP" / (6 * "Model Size") AS tokens, loss')
  assert list(out.columns) == ['params', 'tokens', 'loss']
  np.testing.assert_allclose(out['tokens'], [1e7, 2e7, 4e7], rtol=1e-15)
  assert len(table.read(path, where='loss < 3.4')) == 2


@pytest.mark.parametrize(
  'select',
  [
    "* FROM read_csv('{secret}') --",
    "(SELECT count(*) FROM read_text('{secret}')) AS n",
    "loss FROM runs; COPY (SELECT 1) TO '{out}'; SELECT loss",
    "(SELECT max(content) FROM '{secret}') AS x",
    'loss FROM secret_frame --',
    "getenv('HOME') AS home",
    'loss FROM runs; SET enable_external_access=true; SELECT 1 AS x',
  ],
)
def test_select_sees_this_table_alone(tmp_path, frame, select):
  secret_frame = pd.DataFrame({'loss': [42.0]})  # a replacement scan would find it by name
  assert len(secret_frame) == 1
  secret, out = tmp_path / 'secret.csv', tmp_path / 'out.csv'
  secret.write_text('a\n1\n')
  with pytest.raises(UserError) as error:
    table.query(frame, select.format(secret=secret, out=out))
  assert '\n' not in str(error.value)
  assert not out.exists()


def test_select_errors_name_the_columns(frame):
  with pytest.raises(UserError, match=r"no column 'Modelsize'.*there is Model Size, .*nearest: Model Size"):
    table.query(frame, '"Modelsize" AS params')
  with pytest.raises(UserError, match="two columns named 'loss'"):
    table.query(frame, 'loss, tag AS loss')
  with pytest.raises(UserError):
    table.query(frame, 'loss AS')


def test_missing_column_and_text_column(frame):
  with pytest.raises(UserError, match=r"no column 'params': there is Model Size, Training FLOP, loss, tag.*--select"):
    table.require(frame, ['loss', 'params'])
  with pytest.raises(UserError, match=r"'tag'.*numbers.*'a' in row 0"):
    table.require(frame, ['tag'])


def test_unreadable_sources(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    table.read(tmp_path / 'nothing.csv')
  (tmp_path / 'runs.csv').write_text('a,b\n')
  with pytest.raises(UserError, match=r'did you mean .*runs\.csv'):
    table.read(tmp_path / 'run.csv')
  with pytest.raises(UserError, match='holds no rows'):
    table.read(tmp_path / 'runs.csv')
  (tmp_path / 'empty.csv').touch()
  with pytest.raises(UserError, match='is empty'):
    table.read(tmp_path / 'empty.csv')
  (tmp_path / 'bad.parquet').write_bytes(b'PAR1 not really')
  with pytest.raises(UserError, match=r'could not be read as \.parquet'):
    table.read(tmp_path / 'bad.parquet')
  (tmp_path / 'x.docx').write_text('x')
  with pytest.raises(UserError, match='cannot tell a table'):
    table.read(tmp_path / 'x.docx')
  (tmp_path / 'bad.jsonl').write_text('{"a": 1}\n{broken\n{"a": 2}\n')
  with pytest.raises(UserError, match=r'bad\.jsonl, line 2'):
    table.read(tmp_path / 'bad.jsonl')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='holds no table'):
    table.read(tmp_path / 'empty')


def test_torn_last_line_of_jsonl_is_left_out(tmp_path):
  (tmp_path / 'm.jsonl').write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
  assert table.read(tmp_path / 'm.jsonl')['step'].tolist() == [1]


def test_study_folder_and_finals(tmp_path):
  rows = pd.DataFrame(
    {
      'run_id': ['a', 'a', 'b'],
      'step': [1, 2, 1],
      'tokens': [10, 20, 10],
      'loss': [3.0, 2.0, 2.5],
      'final': [False, True, True],
    }
  )
  (tmp_path / 'study.json').write_text(json.dumps({'name': 's'}))
  with pytest.raises(UserError, match='without results'):
    table.read(tmp_path)
  rows.to_parquet(tmp_path / 'runs.parquet')
  frame = table.read(tmp_path)
  assert table.finals(frame)['loss'].tolist() == [2.0, 2.5]
  assert table.finals(frame.drop(columns='final'))['loss'].tolist() == [2.0, 2.5]
