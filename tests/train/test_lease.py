"""One holder at a time, whatever the claimants do."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import pytest

from scaling.train import lease


def test_a_released_lease_is_free_and_a_held_one_is_not(tmp_path):
  with lease.hold(tmp_path) as first:
    with pytest.raises(lease.Busy, match=str(os.getpid())):
      lease.take(tmp_path)
    first.check()
  assert lease.live_holder(tmp_path) is None
  with lease.hold(tmp_path):
    assert lease.newest(tmp_path) == 2
    assert lease.live_holder(tmp_path)['pid'] == os.getpid()


def test_a_dead_process_here_is_taken_over_at_once(tmp_path):
  code = f'import os; from pathlib import Path; from scaling.train import lease; lease.take(Path({str(tmp_path)!r})); os._exit(9)'
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 9
  assert lease.newest(tmp_path) == 1
  with lease.hold(tmp_path):
    assert lease.newest(tmp_path) == 2


def _foreign(path, age):
  path.write_text(json.dumps({'host': socket.gethostname() + '-other', 'boot': 'x', 'pid': 1, 'started': '1'}))
  os.utime(path, (time.time() - age,) * 2)


def test_another_machine_is_believed_until_its_lease_is_old(tmp_path):
  _foreign(tmp_path / 'lease.7', age=5)
  with pytest.raises(lease.Busy, match='-other'):
    lease.take(tmp_path)
  _foreign(tmp_path / 'lease.7', age=120)
  with lease.hold(tmp_path):
    assert lease.newest(tmp_path) == 8


def test_a_lease_that_is_being_written_counts_as_held(tmp_path):
  (tmp_path / 'lease.1').touch()
  with pytest.raises(lease.Busy):
    lease.take(tmp_path)


def test_the_former_holder_notices_the_takeover(tmp_path):
  with lease.hold(tmp_path) as held:
    held.check()
    (tmp_path / 'lease.2').touch()
    with pytest.raises(lease.Lost):
      held.check()


def test_the_holder_touches_its_lease(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'TOUCH_SECONDS', 0.02)
  with lease.hold(tmp_path) as held:
    os.utime(held.path, (0, 0))
    deadline = time.monotonic() + 5
    while held.path.stat().st_mtime < 1 and time.monotonic() < deadline:
      time.sleep(0.01)
    assert held.path.stat().st_mtime > 1


def _claim(folder, barrier, won):
  barrier.wait()
  try:
    lease.take(folder)
  except lease.Busy:
    pass
  else:
    with won.get_lock():
      won.value += 1
  barrier.wait()  # alive until all have tried


def test_of_many_claimants_one_wins(tmp_path):
  context = multiprocessing.get_context('fork')
  for round_number in range(20):
    folder = tmp_path / str(round_number)
    folder.mkdir()
    _foreign(folder / 'lease.1', age=120)
    barrier, won = context.Barrier(4), context.Value('i', 0)
    claimants = [context.Process(target=_claim, args=(folder, barrier, won)) for _ in range(4)]
    for claimant in claimants:
      claimant.start()
    for claimant in claimants:
      claimant.join()
    assert won.value == 1
