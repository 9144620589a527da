"""`scaling train` started on two hosts: one run, one talker; mistakes in one line on each."""

import os
import socket
import subprocess
import sys

import pytest

from scaling import config
from scaling.train import loop, records

LIMIT = 240  # seconds; a hang is a failure
SETTINGS = {'data.tokens': 8 * 32 * 24, 'data.batch_size': 8, 'optim.learning_rate': 3e-3, 'evaluations': 3}


def together(text_folder, run_dir, *words, hosts=2) -> list[tuple[int, str, str]]:
  """Exit status, output and errors of `scaling train` on each host."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  settings = {
    **SETTINGS, 'data.corpus': text_folder, 'data.sequence_length': 32, 'data.validation_tokens': 1024,
    'model.layers': 2, 'model.width': 16, 'model.heads': 2,
  }  # fmt: skip
  command = [sys.executable, '-m', 'scaling', 'train', f'--run_dir={run_dir}']
  command += [word for k, v in settings.items() for word in ('--set', f'{k}={v}')]
  members = []
  for i in range(hosts):
    env = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
      'SCALING_HEARTBEAT_SECONDS': '10',
      'SCALING_COORDINATOR': f'127.0.0.1:{port}',
      'SCALING_HOSTS': str(hosts),
      'SCALING_HOST': str(i),
    }
    members.append(
      subprocess.Popen([*command, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    )
  try:
    said = [member.communicate(timeout=LIMIT) for member in members]
  finally:
    for member in members:
      if member.poll() is None:
        member.kill()
  return [(member.returncode, *words) for member, words in zip(members, said, strict=True)]


@pytest.mark.slow
def test_two_hosts_train_one_run(text_folder, tiny_run, tmp_path):
  ended = together(text_folder, tmp_path / 'a', '--set', 'execution.mesh=data=2,fsdp=2')
  assert [status for status, _, _ in ended] == [0, 0], ended
  assert 'step 24/24' in ended[0][1] and 'done: loss' in ended[0][1]
  assert 'step' not in ended[1][1] and 'loss' not in ended[1][1]  # one talks, but for what gloo says
  assert records.result(tmp_path / 'a')['devices'] == 4
  loop.train(tiny_run(SETTINGS), tmp_path / 'b', config.Execution(mesh='data=8'))
  curves = [{r['step']: r['loss'] for r in records.read_rows(tmp_path / x / records.METRICS)} for x in 'ab']
  assert curves[0] == pytest.approx(curves[1], rel=1e-5)
  again = together(text_folder, tmp_path / 'a')
  assert [status for status, _, _ in again] == [0, 0], again
  assert 'nothing to do: done' in again[0][1]


@pytest.mark.slow
def test_a_mistake_is_one_line_on_each_host(text_folder, tmp_path):
  for status, _, errors in together(text_folder, tmp_path, '--set', 'execution.mesh=data=3'):
    assert status == 2, errors
    lines = [line for line in errors.splitlines() if line.startswith('scaling: ')]
    assert len(lines) == 1 and 'mesh data=3 has 3 devices, and there are 4' in lines[0]
    assert 'Traceback' not in errors
