"""The supervisor outlives its workers: kills, crashes, full memory, hangs, preemptions; and takes its workers with it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scaling import config
from scaling.config import Data, Model, Run
from scaling.sweep import live, records, supervise
from scaling.sweep.engines import local

FAKE = (sys.executable, '-S', str(Path(__file__).with_name('fake_worker.py')))


def make_sweep(folder, mishaps, workers=2, shapes='ssssssssss', **options):
  """A sweep of one tiny run per entry; an entry holds the words of its mishaps, one per attempt."""
  jobs = []
  for i, words in enumerate(mishaps):
    run = Run(model=Model(vocab=257), data=Data(tokens=4096), seed=i, name=f'run {i}')
    run_dir = folder / 'runs' / run.run_id
    records.write_json(run_dir / 'config.json', {'run_id': run.run_id, 'run': config.to_dict(run)})
    (run_dir / 'mishaps').write_text(words)
    jobs.append(supervise.Job(run.run_id, run.name, run_dir, run.data.steps, run.data.batch_tokens, 1.0 + i, shapes[i]))
  lines = []
  sweep = supervise.Sweep(
    jobs, local.slots(workers), folder / 'logs', live.Plain(lines.append), **{'command': FAKE, **options}
  )
  sweep.run()
  return sweep, lines


def test_all_are_trained_by_few_processes(tmp_path):
  sweep, lines = make_sweep(tmp_path, [''] * 6)
  assert [job.status for job in sweep.jobs] == ['done'] * 6
  assert sweep.restarts == 0 and len(sweep.workers) == 2, 'workers stay for many runs'
  assert len(lines) == 6 and lines[-1].startswith('[6/6] run ') and 'loss' in lines[-1]
  assert all(worker.code() is not None for worker in sweep.workers), 'none is left behind'


@pytest.mark.parametrize('mishap', ['kill', 'segfault', 'raise', 'preempt', 'oom', 'oom-report'])
def test_a_worker_lost_in_the_middle_of_a_run_is_replaced(tmp_path, mishap):
  sweep, _ = make_sweep(tmp_path, [mishap, '', mishap])
  assert [job.status for job in sweep.jobs] == ['done'] * 3
  for job in sweep.jobs:
    rows = records.read_rows(job.run_dir / 'metrics.jsonl')
    assert [row['step'] for row in rows] == [0, 2, 4]


def test_failures_are_counted_and_preemptions_are_not(tmp_path):
  sweep, lines = make_sweep(tmp_path, ['raise ' * 3, 'preempt ' * 6, ''])
  assert [job.status for job in sweep.jobs] == ['failed', 'done', 'done']
  assert sweep.jobs[0].failures == supervise.FAILURES and 'the network is down' in sweep.jobs[0].message
  assert any('FAILED' in line for line in lines)
  assert any('trying again (1 of 3 attempts)' in line for line in lines)


def test_a_user_mistake_is_not_tried_again(tmp_path):
  sweep, _ = make_sweep(tmp_path, ['mistake', ''], workers=1)
  assert [(job.status, job.failures) for job in sweep.jobs] == [('failed', 1), ('done', 0)]
  assert sweep.jobs[0].message == 'data.corpus is gone'


def test_a_full_disk_ends_the_sweep(tmp_path):
  sweep, _ = make_sweep(tmp_path, ['', '', 'disk'], workers=1)
  assert sweep.gave_up == 'no space left' and [job.status for job in sweep.jobs] == ['stopped', 'stopped', 'failed']


def test_out_of_memory_is_reported_as_such(tmp_path):
  sweep, _ = make_sweep(tmp_path, ['oom ' * 3, ''])
  assert sweep.jobs[0].status == 'failed' and sweep.jobs[0].message.startswith('out of memory: RESOURCE_EXHAUSTED')


def test_a_kill_by_the_kernel_for_memory_is_told_from_other_kills(tmp_path, monkeypatch):
  counter = iter(range(1000))
  monkeypatch.setattr(local, 'out_of_memory_kills', lambda: next(counter))
  sweep, _ = make_sweep(tmp_path / 'a', ['kill ' * 3], workers=1)
  assert sweep.jobs[0].message.startswith('out of memory: killed by the kernel (signal 9)')
  monkeypatch.setattr(local, 'out_of_memory_kills', lambda: 7)
  sweep, _ = make_sweep(tmp_path / 'b', ['kill ' * 3], workers=1)
  assert sweep.jobs[0].message.startswith('killed (signal 9) from outside, with no sign that memory ran out')


def test_diverged_runs_stop_nothing(tmp_path):
  sweep, lines = make_sweep(tmp_path, ['diverge', ''], workers=1)
  assert [job.status for job in sweep.jobs] == ['diverged', 'done']
  assert any('diverged at step 3' in line for line in lines)


def test_a_worker_without_a_sign_of_life_is_replaced(tmp_path):
  sweep, lines = make_sweep(tmp_path, ['hang', ''], stuck_seconds=1.5)
  assert [job.status for job in sweep.jobs] == ['done'] * 2
  assert any('no sign of life for 1.5 s' in line for line in lines)


def test_a_sweep_in_which_nothing_works_is_given_up(tmp_path):
  sweep, _ = make_sweep(tmp_path, ['raise ' * 9] * 8, workers=1)
  assert 'the network is down' in sweep.gave_up
  assert len(sweep.of_status('failed')) == supervise.ALIKE and len(sweep.of_status('stopped')) == 5


def test_progress_renews_the_budget_of_failures(tmp_path):
  job = supervise.Job('id', 'run', tmp_path, 100, 1, 1.0, 'shape')
  sweep = supervise.Sweep([job], [], tmp_path, live.Plain(lambda _: None))
  for step in (10, 20, 30, 40, 50, 50):
    sweep._failed(job, 'crash', records.State('begun', step, 100))
  assert job.status == 'waiting' and job.failures == 2
  sweep._failed(job, 'crash', records.State('begun', 50, 100))
  assert job.status == 'failed'


def test_longest_first_unless_a_shape_can_be_kept():
  def job(seconds, shape):
    return supervise.Job('', '', Path(), 1, 1, seconds, shape)

  jobs = [job(9, 'a'), job(8, 'b'), *(job(5, 'a') for _ in range(20))]
  assert supervise.choose(jobs, None, 2) is jobs[0]
  assert supervise.choose(jobs[1:], 'a', 2) is jobs[2], 'the long one of another shape can wait'
  assert supervise.choose([jobs[1], *jobs[2:5]], 'a', 2) is jobs[1], 'now it would be late'
  assert supervise.choose([], 'a', 2) is None


def test_runs_wait_for_memory(tmp_path):
  jobs = [supervise.Job(str(i), str(i), tmp_path, 1, 1, 1.0, 's', bytes=60) for i in range(2)]
  sweep = supervise.Sweep(jobs, local.slots(2), tmp_path, live.Plain(lambda _: None), memory_limit=100)
  assert sweep._next(None) is jobs[0]
  jobs[0].status = 'running'
  assert sweep._next(None) is None
  sweep.memory_limit = 200
  assert sweep._next(None) is jobs[1]


def test_a_grown_worker_is_renewed_before_another_shape(tmp_path, monkeypatch):
  monkeypatch.setattr(supervise, 'GROWN_BYTES', 0)
  seen = set()
  hand_out = supervise.Sweep._hand_out

  def watch(sweep):
    hand_out(sweep)
    seen.update(worker.process.pid for worker in sweep.workers)

  monkeypatch.setattr(supervise.Sweep, '_hand_out', watch)
  sweep, _ = make_sweep(tmp_path / 'same', [''] * 3, workers=1)
  assert len(seen) == 1, 'equal shapes stay'
  seen.clear()
  sweep, _ = make_sweep(tmp_path / 'other', [''] * 3, workers=1, shapes='abc')
  assert len(seen) == 3 and sweep.restarts == 0
  assert [job.status for job in sweep.jobs] == ['done'] * 3


SUPERVISOR = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_supervise
sweep, _ = test_supervise.make_sweep(Path(sys.argv[1]), ['hang', 'hang'])
print(sweep.stopped_by, [job.status for job in sweep.jobs])
"""


def start_supervisor(folder):
  """A sweep of two hanging runs in its own process, and its workers once both are at work."""
  argv = [sys.executable, '-c', SUPERVISOR, str(folder), str(Path(__file__).parent)]
  process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 30
  while time.monotonic() < deadline:
    workers = psutil.Process(process.pid).children()
    if len(workers) == 2 and len(list(Path(folder).glob('runs/*/progress.json'))) == 2:
      return process, workers
    time.sleep(0.05)
  process.kill()
  raise AssertionError('the workers did not start')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_in_good_order(tmp_path, number):
  process, workers = start_supervisor(tmp_path)
  process.send_signal(number)
  said, _ = process.communicate(timeout=20)
  assert said.split() == [str(int(number)), "['stopped',", "'stopped']"]
  assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)


@pytest.mark.skipif(sys.platform != 'linux', reason='PR_SET_PDEATHSIG is of Linux')
def test_workers_die_with_a_killed_supervisor(tmp_path):
  script = tmp_path / 'parent.py'
  script.write_text(
    'import sys, time\n'
    'from pathlib import Path\n'
    'from scaling.sweep.engines import local\n'
    f'command = (sys.executable, "-m", "scaling.sweep.engines.local", "sleeper")\n'
    f'worker = local.Worker(local.slots(1)[0], Path({str(tmp_path / "log")!r}), command)\n'
    'print(worker.process.pid, flush=True)\n'
    'time.sleep(60)\n'
  )
  (tmp_path / 'sleeper.py').write_text(
    f'import os, time\nopen({str(tmp_path / "cores")!r}, "w").write(str(len(os.sched_getaffinity(0))))\ntime.sleep(60)\n'
  )
  environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
  process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
  worker = psutil.Process(int(process.stdout.readline()))
  deadline = time.monotonic() + 20
  while not (tmp_path / 'cores').exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert (tmp_path / 'cores').read_text() == '1', 'a worker is bound to its core'
  process.kill()
  process.wait()
  while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_slots_bind_cores_and_limit_threads(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8 --xla_other=1')
  slots = local.slots(3)
  assert len({slot.index for slot in slots}) == 3
  environment = dict(slots[0].environment)
  assert environment['OMP_NUM_THREADS'] == '1'
  assert environment['XLA_FLAGS'].split() == ['--xla_other=1', *local.THREAD_FLAGS.split()]


def test_sparkline():
  assert live.sparkline([3.0, 2.0, 1.0]) == '█▅▁' or live.sparkline([3.0, 2.0, 1.0])[0] == '█'
  assert live.sparkline([float('nan'), None, 1.0]) == '  ▁'
  assert live.sparkline([]) == '' and len(live.sparkline(list(range(100)))) == 16


def test_summary_line(tmp_path):
  sweep, _ = make_sweep(tmp_path, ['', 'diverge'])
  line = live.summary(sweep, 12_345.0, 75.0)
  assert line.startswith('1 done, 0 running, 0 waiting, 1 diverged | 12.3k tokens/s | about 1 min 15 s left')


def test_the_table_on_a_terminal(tmp_path):
  import io

  from rich.console import Console

  screen = io.StringIO()
  console = Console(file=screen, force_terminal=True, width=100)
  view = live.view(console)
  assert isinstance(view, live.Live)
  with view:
    sweep, _ = make_sweep(tmp_path, ['slow', ''])
    sweep.jobs[0].status = 'running'
    view._drawn = 0.0
    view.update(sweep)
    view.finished(sweep, sweep.jobs[1])
  text = screen.getvalue()
  assert '1 done, 1 running' in text and 'run 0' in text and '/2] run 1: loss' in text
  assert json.loads((sweep.jobs[1].run_dir / 'result.json').read_text())['status'] == 'done'
