"""The files of a run directory survive what a crash leaves of them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling import config
from scaling.errors import UserError
from scaling.train import records


def write_rows(folder, after, steps):
  rows = records.Metrics(folder, after)
  for step in steps:
    rows.append({'step': step, 'loss': step / 10})
  rows.close()


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_file_cut_anywhere_loses_only_the_cut_row(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp('cut')
  write_rows(folder, 0, [0, 10, 20, 30])
  path = folder / records.METRICS
  whole = path.read_bytes()
  cut = data.draw(st.integers(0, len(whole)))
  path.write_bytes(whole[:cut])
  kept = [row['step'] for row in records.read_rows(path)]
  assert kept == [0, 10, 20, 30][: len(kept)] and len(kept) >= whole[:cut].count(b'\n')
  after = kept[-1] if kept else 0
  write_rows(folder, after, [s for s in (0, 10, 20, 30) if s not in kept])
  assert path.read_bytes() == whole


def test_rows_past_the_restored_step_are_dropped(tmp_path):
  write_rows(tmp_path, 0, [0, 10, 20, 30])
  write_rows(tmp_path, 15, [])
  assert [row['step'] for row in records.read_rows(tmp_path / records.METRICS)] == [0, 10]


def test_torn_bytes_in_the_middle_are_passed_over(tmp_path):
  path = tmp_path / records.METRICS
  path.write_bytes(b'{"step": 0, "loss": 1.0}\n\x00\x00{"st\n{"step": 10, "loss": 0.5}\n[1]\n')
  assert [row['step'] for row in records.read_rows(path)] == [0, 10]
  write_rows(tmp_path, 10, [20])
  assert all(json.loads(line) for line in path.read_text().splitlines())


def test_json_files_are_replaced_whole(tmp_path):
  path = tmp_path / 'x.json'
  records.write_json(path, {'a': 1})
  with pytest.raises(ValueError):
    records.write_json(path, {'a': float('nan')})
  assert records.read_json(path) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_a_result_counts_only_when_whole(tmp_path):
  assert records.result(tmp_path) is None
  (tmp_path / records.RESULT).write_text('{"status": "do')
  assert records.result(tmp_path) is None
  records.write_json(tmp_path / records.RESULT, {'status': 'diverged'})
  assert records.result(tmp_path) == {'status': 'diverged'}


def test_a_directory_belongs_to_one_run(tmp_path):
  run = config.Run()
  records.write_config(tmp_path, run, config.Execution())
  assert records.read_config(tmp_path) == (run, config.Execution())
  other = config.Run(seed=1)
  with pytest.raises(UserError, match=f'holds run {run.run_id}, and this is run {other.run_id}'):
    records.write_config(tmp_path, other, config.Execution())
  with pytest.raises(UserError, match='missing'):
    records.read_config(tmp_path / 'nowhere')


def test_a_full_disk_is_known_by_number_or_by_words():
  assert records.disk_is_full(OSError(28, 'x'))
  try:
    try:
      raise ValueError('RESOURCE_EXHAUSTED: write: No space left on device')
    except ValueError as inner:
      raise RuntimeError('save failed') from inner
  except RuntimeError as error:
    assert records.disk_is_full(error)
  assert not records.disk_is_full(OSError(13, 'x'))
