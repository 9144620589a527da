"""A study through `run_study` and `scaling run`: only what is missing is trained, and stopping loses nothing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from scaling import cli, config
from scaling.errors import UserError
from scaling.sweep import live, plan, records, run
from scaling.sweep.engines import local
from scaling.sweep.engines import print as print_engine
from scaling.sweep.grid import grid
from scaling.sweep.study import Study, largest_compute

FAKE = (sys.executable, '-S', str(Path(__file__).with_name('fake_worker.py')))


def make_study(tiny_run, name='tiny', **options):
  base = config.replace(tiny_run(), {'model.vocab': None, 'data.fingerprint': None})
  axes = {('model.width', 'model.heads'): [(16, 2), (32, 4), (48, 4)], 'data.tokens': [4096, 8192, 16384]}
  runs = grid(base, axes)
  return Study(name, runs, largest_compute(runs), baselines=False, bootstrap=10, **options)


def launch(study, out, **options):
  lines = []
  outcome = run.run_study(study, out, 2, live.Plain(lines.append), lines.append, FAKE, **options)
  return outcome, lines


def test_train_collect_and_repeat(tiny_run, tmp_path):
  study = make_study(tiny_run)
  first, _ = launch(study, tmp_path)
  assert not first.failed and not first.plan.owed and len(first.sweep.jobs) == 9
  assert first.frame['final'].sum() == 9 and len(first.frame) == 27
  assert first.frame.loc[first.frame['held_out'], 'run_id'].nunique() == 1
  again, lines = launch(study, tmp_path)
  assert again.sweep is None and not lines, 'nothing was missing, so nothing was started'
  assert again.records == first.records
  pd.testing.assert_frame_equal(again.frame, first.frame)


def test_another_study_in_the_folder_trains_only_its_own_cells(tiny_run, tmp_path):
  study = make_study(tiny_run)
  launch(study, tmp_path)
  more = Study('more', [*study.runs, config.replace(study.runs[0], {'seed': 1})], baselines=False)
  outcome, _ = launch(more, tmp_path)
  assert len(outcome.sweep.jobs) == 1 and outcome.frame['run_id'].nunique() == 10


def test_the_longest_run_is_given_out_first(tiny_run, tmp_path):
  outcome, _ = launch(make_study(tiny_run), tmp_path)
  begun = sorted(outcome.sweep.jobs, key=lambda job: job.began)
  assert begun[0].seconds == max(job.seconds for job in outcome.sweep.jobs)


def test_failures_and_divergence_do_not_stop_the_rest(tiny_run, tmp_path):
  study = make_study(tiny_run)
  made = plan.make(study, tmp_path)
  run.prepare(made)
  for cell, words in zip(made.cells, ['raise ' * 3, 'diverge', 'kill'], strict=False):
    (tmp_path / 'runs' / cell.run_id / 'mishaps').write_text(words)
  outcome, _ = launch(study, tmp_path)
  assert [name for name, _ in outcome.failed] == [made.cells[0].name]
  assert outcome.diverged == (made.cells[1].name,)
  final = outcome.frame[outcome.frame['final']]
  assert len(final) == 8 and final['diverged'].sum() == 1
  again, _ = launch(study, tmp_path)
  assert not again.failed and len(again.sweep.jobs) == 1, 'the failed run alone is owed, and tried again'


def test_a_folder_takes_one_sweep_at_a_time(tiny_run, tmp_path):
  with run.lock(tmp_path), pytest.raises(UserError, match=r'another `scaling run` .* is at work'):
    launch(make_study(tiny_run), tmp_path)


def test_full_and_forbidden_disks_are_told_in_one_line(tiny_run, tmp_path, monkeypatch):
  import errno
  import shutil

  study = make_study(tiny_run)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: type('usage', (), {'free': 1000})())
  with pytest.raises(UserError, match='free some, or give --out a folder elsewhere'):
    launch(study, tmp_path)
  monkeypatch.undo()
  monkeypatch.setattr(records, 'write_json', lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'full')))
  with pytest.raises(UserError, match='no space left on the disk'):
    launch(study, tmp_path)


def test_fewer_workers_where_memory_is_short(tiny_run, tmp_path, monkeypatch):
  made = plan.make(make_study(tiny_run), tmp_path, workers=4)
  lines = []
  assert run.affordable(made, lines.append) == (4, {}) and not lines, 'tiny runs are not worth an estimate'
  monkeypatch.setattr(plan.Plan, 'memory', lambda self, cell: 10**9)
  monkeypatch.setattr(local, 'memory_limit', lambda: int(2.5e9))
  count, sizes = run.affordable(made, lines.append)
  assert count == 2 and len(sizes) == 9 and '2 of 4 workers' in lines[0]
  monkeypatch.setattr(local, 'memory_limit', lambda: 10**8)
  assert run.affordable(made, lines.append)[0] == 1 and 'the largest run takes about 1.00 GB' in lines[-1]


def test_print_gives_a_command_per_owed_run(tiny_run, tmp_path):
  made = plan.make(make_study(tiny_run), tmp_path)
  commands = print_engine.commands(made, 'python')
  assert len(commands) == 9
  assert commands[0] == f'python -m scaling.train.worker --run_dir={tmp_path}/runs/{made.cells[0].run_id}'


STUDY = """
from scaling import config
from scaling.sweep.grid import grid
from scaling.sweep.study import Study, largest_compute

def study():
  base = config.from_dict(config.Run, {base!r})
  axes = {{('model.width', 'model.heads'): [(16, 2), (32, 4), (48, 4)], 'data.tokens': [4096, 8192, 16384]}}
  runs = grid(base, axes)
  return Study('mine', runs, largest_compute(runs), laws=['chinchilla'], baselines=False, bootstrap=10)
"""


@pytest.fixture
def study_file(tiny_run, tmp_path):
  base = config.to_dict(config.replace(tiny_run(), {'model.vocab': None, 'data.fingerprint': None}))
  path = tmp_path / 'mine.py'
  path.write_text(STUDY.format(base=base))
  return path


def test_the_command_with_a_stand_in_for_training(study_file, tmp_path, monkeypatch, capsys):
  """Plan, sweep, records, fit, report, all through the command line; the second time from what is there."""
  monkeypatch.setattr(local, 'WORKER', FAKE)
  out = tmp_path / 'out'
  assert cli.main(['run', str(study_file), f'--out={out}']) == 0
  said = capsys.readouterr().out
  assert '9 of 9 runs are done' in said and 'chinchilla' in said and 'Held out' in said and 'report.html' in said
  assert (out / 'report.html').is_file() and json.loads((out / 'fits.json').read_text())[0]['law'] == 'chinchilla'
  written = (out / 'report.html').stat().st_mtime_ns
  began = time.monotonic()
  assert cli.main(['run', str(study_file), f'--out={out}']) == 0
  again = capsys.readouterr().out
  assert 'nothing was trained' in again and time.monotonic() - began < 6
  assert (out / 'report.html').stat().st_mtime_ns == written
  assert [line for line in again.splitlines() if 'predicted' in line] == [
    line for line in said.splitlines() if 'predicted' in line
  ]
  assert cli.main(['status', str(out)]) == 0
  assert '9 done' in capsys.readouterr().out


def test_a_failed_run_is_status_1_and_the_rest_is_fitted(study_file, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(local, 'WORKER', FAKE)
  out = tmp_path / 'out'
  assert cli.main(['run', str(study_file), f'--out={out}', '--engine=print']) == 0
  commands = capsys.readouterr().out.split('\n')
  run_dir = Path(commands[0].partition('--run_dir=')[2])
  (run_dir / 'mishaps').write_text('raise ' * 3)
  assert cli.main(['run', str(study_file), f'--out={out}']) == 1
  captured = capsys.readouterr()
  assert 'failed: ' in captured.err and 'the network is down' in captured.err
  assert '8 of 9 runs are done' in captured.out and 'report.html' in captured.out


def test_unknown_laws_are_told_before_training(study_file, tmp_path, capsys):
  study_file.write_text(study_file.read_text().replace("'chinchilla'", "'chinchila'"))
  assert cli.main(['run', str(study_file), f'--out={tmp_path / "out"}']) == 2
  assert "did you mean 'chinchilla'" in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_stopped_and_resumed_by_the_same_command(study_file, tmp_path):
  out = tmp_path / 'out'
  code = (
    'import sys; from scaling import cli; from scaling.sweep.engines import local; '
    f'local.WORKER = {FAKE!r}; sys.exit(cli.main(["run", {str(study_file)!r}, "--out={out}", "--nofit"]))'
  )
  # The print engine prepares the directories, so that a mishap can be put into each.
  assert cli.main(['run', str(study_file), f'--out={out}', '--engine=print']) == 0
  for run_dir in (out / 'runs').iterdir():
    (run_dir / 'mishaps').write_text('hang')
  process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 30
  while len(list(out.glob('runs/*/attempts'))) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  said, _ = process.communicate(timeout=20)
  assert process.returncode == 75
  assert 'stopped: 0 of 9 runs are done; repeat the command to resume' in said
  for run_dir in (out / 'runs').iterdir():
    (run_dir / 'mishaps').write_text('')
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
  assert len(list(out.glob('runs/*/result.json'))) == 9


@pytest.mark.slow
def test_the_whole_command_on_real_trainings(tmp_path):
  """`scaling run smoke`, killed once, repeated, and repeated again: equal tables, and nothing trained the last time."""
  command = [sys.executable, '-m', 'scaling', 'run', 'smoke', f'--out={tmp_path}']
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 120
  while not list(tmp_path.glob('runs/*/result.json')) and time.monotonic() < deadline:
    time.sleep(0.1)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr + done.stdout
  assert '8 of 8 runs are done' in done.stdout and 'report.html' in done.stdout
  table = pd.read_parquet(tmp_path / 'runs.parquet')
  again = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert again.returncode == 0 and 'nothing was trained' in again.stdout
  pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / 'runs.parquet'), table)
  straight = tmp_path / 'straight'
  subprocess.run([*command[:-1], f'--out={straight}', '--nofit'], check=True, capture_output=True, timeout=300)
  columns = ['run_id', 'step', 'tokens', 'loss']
  pd.testing.assert_frame_equal(pd.read_parquet(straight / 'runs.parquet')[columns], table[columns], check_exact=True)
