"""The loop by itself, on eight devices: what it writes and when it stops."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling import config
from scaling.errors import UserError
from scaling.train import loop, records


@pytest.fixture(scope='module')
def run(tiny_run):
  return tiny_run({'data.batch_size': 8, 'data.tokens': 8 * 32 * 20, 'evaluations': 4})


@given(st.integers(1, 1000), st.integers(1, 60))
@settings(deadline=None)
def test_evaluations_are_spread_evenly_and_end_at_the_end(steps, evaluations):
  at = loop.evaluation_steps(config.Run(data=config.Data(tokens=1024 * steps), evaluations=evaluations))
  assert at[0] == 0 and at[-1] == steps and len(at) == min(steps, evaluations) + 1
  assert np.ptp(np.diff(at)) <= 1


def test_stopped_and_resumed_on_another_mesh_the_curve_goes_on(tmp_path, run):
  """Not bit for bit, as sums over devices have another order; within 1e-5."""
  whole = loop.train(run, tmp_path / 'whole')
  asked = iter([False] * 2)
  stopped = loop.train(run, tmp_path / 'parts', stop=lambda: next(asked, True))
  assert stopped['status'] == 'preempted' and 0 < stopped['step'] < 20
  assert records.result(tmp_path / 'parts') is None
  resumed = loop.train(run, tmp_path / 'parts', config.Execution(mesh='data=2,model=2,fsdp=2'))
  assert resumed['status'] == 'done' and resumed['mesh'] == 'data=2,fsdp=2,model=2'
  curves = [[row['loss'] for row in records.read_rows(tmp_path / d / records.METRICS)] for d in ('whole', 'parts')]
  assert len(curves[0]) == 5
  np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)
  assert whole['tokens'] == resumed['tokens'] == 8 * 32 * 20
  assert loop.train(run, tmp_path / 'whole') == whole  # done: nothing is trained


@pytest.mark.slow
def test_asked_steps_are_profiled(tmp_path, run):
  """In a process of its own: the profiler crashes where other libraries have brought theirs."""
  records.write_config(tmp_path, run, config.Execution(profile='3:4'))
  command = [sys.executable, '-m', 'scaling.train.worker', f'--run_dir={tmp_path}']
  assert subprocess.run(command, capture_output=True, timeout=200).returncode == 0
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def test_mistakes_are_told_before_training(tmp_path, run, tiny_run):
  with pytest.raises(UserError, match='batch_size=4'):
    loop.train(tiny_run(), tmp_path / 'a')
  with pytest.raises(UserError, match='profile'):
    loop.train(run, tmp_path / 'b', config.Execution(profile='5'))
  with pytest.raises(UserError, match='mesh'):
    loop.train(run, tmp_path / 'c', config.Execution(mesh='data=3'))
  (tmp_path / 'd').mkdir()
  (tmp_path / 'd' / 'config.json').write_text(json.dumps({'run_id': 'another'}))
  with pytest.raises(UserError, match='another'):
    loop.train(run, tmp_path / 'd')
