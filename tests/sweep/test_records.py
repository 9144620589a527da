"""Records survive being cut anywhere, and become one tidy table."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling import config
from scaling.config import Data, Model, Run
from scaling.errors import UserError
from scaling.sweep import records
from scaling.train import lease

ROWS = [{'step': s, 'tokens': 128 * s, 'loss': 5.0 / (1 + s), 'text': 'ümläut {"step": 1}'} for s in range(0, 50, 5)]
TEXT = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in ROWS).encode()


@given(cut=st.integers(0, len(TEXT)))
def test_a_file_cut_at_any_byte_loses_at_most_its_last_row(tmp_path_factory, cut):
  path = tmp_path_factory.mktemp('cut') / 'metrics.jsonl'
  path.write_bytes(TEXT[:cut])
  whole = TEXT[:cut].count(b'\n')
  rows = records.read_rows(path)
  assert rows == ROWS[: len(rows)] and whole <= len(rows) <= whole + 1


@given(cut=st.integers(0, len(TEXT)), back=st.integers(0, 9))
def test_a_resumed_file_reads_as_the_uninterrupted_one(tmp_path_factory, cut, back):
  """After a cut, the writer ends the torn line and repeats the steps since its checkpoint."""
  path = tmp_path_factory.mktemp('resumed') / 'metrics.jsonl'
  begun = max(0, min(back, TEXT[:cut].count(b'\n')))
  tail = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in ROWS[begun:]).encode()
  path.write_bytes(TEXT[:cut] + b'\n' + tail)
  assert records.read_rows(path) == ROWS


@given(junk=st.binary(max_size=60), at=st.integers(0, len(ROWS)))
def test_foreign_bytes_are_left_out(tmp_path_factory, junk, at):
  path = tmp_path_factory.mktemp('junk') / 'metrics.jsonl'
  lines = TEXT.splitlines(keepends=True)
  path.write_bytes(b''.join(lines[:at]) + b'\n\xff' + junk.replace(b'{', b'(') + b'\n' + b''.join(lines[at:]))
  assert records.read_rows(path) == ROWS


def test_the_last_row_of_a_step_counts(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 1, "loss": 4}\n[1]\n{"loss": 1}\n7\n')
  assert records.read_rows(path) == [{'step': 1, 'loss': 4}, {'step': 2, 'loss': 2}]
  assert records.read_rows(tmp_path / 'absent') == []


def test_states_follow_from_the_files(tmp_path):
  assert records.state(tmp_path).status == 'new'
  (tmp_path / 'metrics.jsonl').write_text('{"step": 4, "loss": 3.0}\n')
  assert records.state(tmp_path, 8) == records.State('begun', 4, 8)
  (tmp_path / 'progress.json').write_text('{"step": 6}')
  with lease.hold(tmp_path):
    assert records.state(tmp_path, 8) == records.State('running', 6, 8)
  assert records.state(tmp_path, 8) == records.State('begun', 6, 8)
  (tmp_path / 'failure.json').write_text(json.dumps({'error': 'RuntimeError: no\nTraceback'}))
  assert records.state(tmp_path).status == 'failed' and records.state(tmp_path).message == 'RuntimeError: no'
  (tmp_path / 'result.json').write_text('{"status": "don')
  assert not records.state(tmp_path).finished, 'half a result is none'
  (tmp_path / 'result.json').write_text('{"status": "diverged", "step": 6}')
  assert records.state(tmp_path).finished


def make_study(out, runs, held_out=()):
  manifest = {
    'name': 'made', 'counting': 'params_non_embedding', 'flops': 'flops_chinchilla', 'held_out': list(held_out), 'laws': [],
    'runs': [{'run_id': r.run_id, 'name': r.name, 'config': config.to_dict(r)} for r in runs],
  }  # fmt: skip
  records.write_json(out / 'study.json', manifest)


def write_run(out, run, rows, result=None):
  folder = out / 'runs' / run.run_id
  folder.mkdir(parents=True)
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  if result:
    (folder / 'result.json').write_text(json.dumps(result))


def test_one_tidy_table(tmp_path):
  import pandas as pd

  base = Run(model=Model(width=16, heads=2, vocab=257), data=Data(tokens=4096))
  runs = [config.replace(base, {'seed': seed, 'name': f'seed {seed}'}) for seed in range(4)]
  make_study(tmp_path, runs, held_out=[runs[1].run_id])
  rows = [{'step': s, 'tokens': 1024 * s, 'loss': 4.0 - s, 'flops_chinchilla': 10.0 * s} for s in (0, 2, 4)]
  write_run(tmp_path, runs[0], rows, {'status': 'done', 'step': 4, 'params_total': 99})
  write_run(tmp_path, runs[1], rows, {'status': 'done', 'step': 4})
  write_run(tmp_path, runs[2], [*rows[:2], {'step': 3, 'tokens': 3072, 'loss': float('nan')}],
            {'status': 'diverged', 'diverged_step': 3, 'step': 3})  # fmt: skip
  frame = records.collect(tmp_path)
  assert len(frame) == 9 and frame['run_id'].nunique() == 3, 'a run that never began has no rows'
  assert frame['final'].sum() == 3
  last = frame[frame['final']].set_index('name')
  assert last['loss'][['seed 0', 'seed 1']].tolist() == [0.0, 0.0] and last['loss'].isna()['seed 2']
  assert last['held_out'].tolist() == [False, True, False] and last['diverged'].tolist() == [False, False, True]
  assert (last['params'] == last['params_non_embedding']).all() and (last['flops'] == last['flops_chinchilla'])[
    'seed 0'
  ]
  assert last['params_total']['seed 0'] == 99, 'what the run itself recorded goes first'
  assert last['model.width'].tolist() == [16] * 3 and last['seed'].tolist() == [0, 1, 2]
  pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / 'runs.parquet'), frame, check_dtype=False)


def test_collecting_again_is_the_same_and_a_new_row_is_noticed(tmp_path):
  run = Run(model=Model(vocab=257), data=Data(tokens=4096))
  make_study(tmp_path, [run])
  write_run(tmp_path, run, [{'step': 0, 'tokens': 0, 'loss': 5.0}])
  before = records.fingerprint(tmp_path)
  table = (records.collect(tmp_path), (tmp_path / 'runs.parquet').read_bytes())[1]
  records.collect(tmp_path)
  assert records.fingerprint(tmp_path) == before and (tmp_path / 'runs.parquet').read_bytes() == table
  with (tmp_path / 'runs' / run.run_id / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 4, "tokens": 4096, "loss": 3.0}\n')
  assert records.fingerprint(tmp_path) != before


def test_a_folder_that_is_no_study(tmp_path):
  with pytest.raises(UserError, match=r'holds no study\.json'):
    records.collect(tmp_path)
