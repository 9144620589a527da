"""Killed anywhere, a run goes on as if it had not been; signals, full disks and rivals end it cleanly."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from scaling import config
from scaling.train import lease, records, worker

VARYING = ('seconds', 'tokens_per_second')  # of a row: all else is the same bit for bit


def environment():
  """One CPU device, one thread: what a worker of a sweep has."""
  flags = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'
  return {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': '1'}


def start(*args, **kwargs):
  command = [sys.executable, '-m', 'scaling.train.worker', *map(str, args)]
  return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, **kwargs)


def finish(process, timeout=200):
  _, errors = process.communicate(timeout=timeout)
  # Not what XLA logs of itself: jax 0.10.0 does at each program that it takes from the compile cache.
  own = [line for line in errors.splitlines() if line.strip() and not re.match(r'[EIW]\d{4} ', line)]
  return process.returncode, own


def prepare(folder, run, **execution):
  records.write_config(folder, run, config.Execution(**execution))
  return folder


def rows(folder):
  found = records.read_rows(folder / records.METRICS)
  return [{k: v for k, v in row.items() if k not in VARYING} for row in found]


def wait_for_rows(folder, count, process):
  deadline = time.monotonic() + 120
  while len(records.read_rows(folder / records.METRICS)) < count:
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.fixture(scope='module')
def run(tiny_run):
  return tiny_run({'data.tokens': 128 * 1500, 'evaluations': 12, 'optim.learning_rate': 3e-3})


@pytest.fixture(scope='module')
def straight(run, tmp_path_factory):
  """The run, uninterrupted and without checkpoints on the way."""
  folder = prepare(tmp_path_factory.mktemp('straight'), run)
  code, errors = finish(start(f'--run_dir={folder}'))
  assert code == 0, errors
  return folder


def test_a_run_writes_its_rows_and_its_result(straight, run):
  found = records.read_rows(straight / records.METRICS)
  assert [row['step'] for row in found] == [125 * i for i in range(13)]
  assert set(found[0]) == {
    'step', 'tokens', 'loss', 'train_loss', 'bits_per_byte', 'grad_norm', 'learning_rate', 'flops_kaplan',
    'flops_chinchilla', 'flops_exact', 'flops_exact_causal', 'seconds', 'tokens_per_second',
  }  # fmt: skip
  assert found[0]['train_loss'] is None and found[0]['loss'] == pytest.approx(5.55, abs=0.1)  # log 256 at the start
  assert found[-1]['loss'] < 3.5 and found[-1]['tokens'] == 128 * 1500
  assert all(a['seconds'] < b['seconds'] for a, b in itertools.pairwise(found))
  result = records.result(straight)
  assert result['status'] == 'done' and result['diverged_step'] is None and result['run_id'] == run.run_id
  assert result['loss'] == found[-1]['loss'] and result['step'] == 1500
  assert result['flops_kaplan'] == 6 * result['params_non_embedding'] * result['tokens']
  assert (straight / 'checkpoints' / '1500').is_dir()


def kill_and_resume(folder, run, straight, kills, seed):
  generator = random.Random(seed)
  prepare(folder, run, checkpoint_seconds=0.02)
  seen = 0
  for _ in range(kills):
    process = start(f'--run_dir={folder}')
    wait_for_rows(folder, min(seen + generator.randint(1, 3), 11), process)
    time.sleep(generator.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    finish(process)
    seen = len(rows(folder))
  code, errors = finish(start(f'--run_dir={folder}'))
  assert code == 0, errors
  assert rows(folder) == rows(straight)
  results = [records.result(f) for f in (folder, straight)]
  for result in results:
    for name in VARYING:
      del result[name]
  assert results[0] == results[1]


def test_killed_twice_the_curve_is_bit_for_bit_the_uninterrupted_one(tmp_path, run, straight):
  kill_and_resume(tmp_path, run, straight, kills=2, seed=int.from_bytes(os.urandom(4), 'big'))
  assert lease.newest(tmp_path) == 3


@pytest.mark.slow
def test_killed_again_and_again_the_curve_is_bit_for_bit_the_uninterrupted_one(tmp_path, run, straight):
  for repeat in range(3):
    kill_and_resume(tmp_path / str(repeat), run, straight, kills=6, seed=repeat)


def test_sigterm_saves_and_leaves_with_75(tmp_path, run, straight):
  prepare(tmp_path, run)
  process = start(f'--run_dir={tmp_path}')
  wait_for_rows(tmp_path, 3, process)
  process.send_signal(signal.SIGTERM)
  assert finish(process) == (75, [])
  saved = [int(path.name) for path in (tmp_path / 'checkpoints').iterdir()]
  assert len(saved) == 1 and 125 * 2 <= saved[0] < 1500
  assert not (tmp_path / records.FAILURE).exists() and records.result(tmp_path) is None
  code, errors = finish(start(f'--run_dir={tmp_path}'))
  assert code == 0, errors
  assert rows(tmp_path) == rows(straight)


def test_a_done_run_is_left_at_once_without_jax(straight):
  code = (
    'import sys; from scaling.train import worker; code = worker.main(sys.argv[1:]); '
    "sys.exit(9 if {'jax', 'numpy'} & set(sys.modules) else code)"
  )
  before = (straight / records.METRICS).stat().st_mtime_ns
  began = time.monotonic()
  done = subprocess.run([sys.executable, '-c', code, f'--run_dir={straight}'], check=False)
  assert done.returncode == 0
  assert time.monotonic() - began < 5
  assert (straight / records.METRICS).stat().st_mtime_ns == before


def test_a_run_in_other_hands_is_left_alone(tmp_path, run):
  prepare(tmp_path, run)
  with lease.hold(tmp_path):
    code, errors = finish(start(f'--run_dir={tmp_path}'))
  assert code == 75
  assert len(errors) == 1 and f'process {os.getpid()}' in errors[0]
  assert not (tmp_path / records.METRICS).exists() and not (tmp_path / records.FAILURE).exists()


def test_many_runs_by_standard_input_with_one_that_diverges(tmp_path, tiny_run):
  """Three runs in one process: a good one, one that diverges, one that is no run; each answered by a line."""
  good = tiny_run()
  wild = tiny_run({'optim.learning_rate': 1e6})
  folders = [prepare(tmp_path / 'good', good), prepare(tmp_path / 'wild', wild), tmp_path / 'nothing']
  process = start('--stdin', stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  output, errors = process.communicate(''.join(f'{folder}\n' for folder in folders), timeout=200)
  assert process.returncode == 0, errors
  answers = [json.loads(line) for line in output.splitlines()]
  assert [a['status'] for a in answers] == ['done', 'diverged', 'failed']
  assert [a['run_id'] for a in answers] == [good.run_id, wild.run_id, None]
  assert 'config.json is missing' in answers[2]['error'] and answers[2]['kind'] == 'user'
  # The second took the compiled programs of the first.
  assert answers[1]['seconds'] < answers[0]['seconds']
  result = records.result(folders[1])
  found = records.read_rows(folders[1] / records.METRICS)
  assert 1 <= result['diverged_step'] <= 32 and result['step'] == result['diverged_step']
  assert result['loss'] == found[-1]['loss'] and all(row['step'] < result['diverged_step'] for row in found)
  assert result['train_loss'] is not None


def test_a_full_disk_is_one_line(tmp_path, run):
  mount = tmp_path / 'small'
  mount.mkdir()
  made = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=96k', 'tmpfs', str(mount)], check=False, capture_output=True
  )
  if made.returncode:
    pytest.skip('a small file system cannot be mounted here')
  try:
    folder = prepare(mount / 'run', run, checkpoint_seconds=0.02)
    code, errors = finish(start(f'--run_dir={folder}'))
    failure = records.read_json(folder / records.FAILURE)
    found = rows(folder)
  finally:
    subprocess.run(['umount', str(mount)], check=True)
  assert code == 1
  # Orbax's own threads may complain too, as their event loop was closed under them.
  assert len([line for line in errors if 'no space left on the disk' in line]) == 1, errors
  assert failure is None or failure['kind'] == 'disk'
  assert found, 'the rows before are kept'


def test_kinds_of_failure():
  kind, line = worker.describe(RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.\nmore'))
  assert kind == 'memory' and line.count('\n') == 0
  assert worker.describe(MemoryError())[0] == 'memory'
  assert worker.describe(OSError(28, 'No space left on device'))[0] == 'disk'
  assert worker.describe(ZeroDivisionError('division by zero')) == ('crash', 'ZeroDivisionError: division by zero')
