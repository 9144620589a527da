"""`scaling train`: one run, by itself."""

import contextlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from scaling import config, verbs

USAGE = '[--preset=NAME] [--set path=value ...] [--run_dir=DIR]'
SUMMARY = 'one run, by itself, on all devices here; safe to repeat'
DETAILS = """
Trains the default run with the changes that --preset and --set make. The run directory gets config.json, metrics.jsonl (one line
per evaluation), result.json and checkpoints. Repeating the command resumes a run that was stopped, and does nothing
for one that is done.

On several hosts, start the same command on each, with SCALING_COORDINATOR=HOST:PORT, SCALING_HOSTS=N and SCALING_HOST=I where
neither SLURM nor a TPU pod says so; all must see the same run directory.
"""
EXAMPLES = (
  'scaling train --preset=ladder-64k --set data.tokens=1e6',
  'scaling train --set data.corpus=my/texts --set data.tokenizer=bpe-4096 --set model.width=128 --run_dir=runs/mine',
)
ARGUMENTS = (0, 0)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string('preset', None, 'a published shape (gpt2, llama-7b) or a rung of the ladder (ladder-64k)',
                      flag_values=values)  # fmt: skip
  flags.DEFINE_string('run_dir', None, 'the run directory; runs/RUN_ID if not given', flag_values=values)
  verbs.define_set(values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Trains, printing a line per evaluation."""
  run, execution = make(values.preset, verbs.overrides(values))
  from scaling.parallel import hosts

  if hosts.settings() is None:
    return _main(run, execution, values.run_dir)
  from scaling.errors import UserError

  try:
    join()
    code = _main(run, execution, values.run_dir)
  except (
    BaseException
  ) as error:  # no way out but by `leave` or `fail`: threads of the other hosts' connections may be waiting
    code = 75 if hosts.is_lost(error) else 2 if isinstance(error, UserError) else 1
    if code == 1:
      traceback.print_exception(error)
    line = 'another host is gone: start all of them again to resume' if code == 75 else error
    print(f'scaling: {" ".join(str(line).split())}', file=sys.stderr)
    hosts.leave(code) if code == 75 else hosts.fail(code)
  hosts.stop(code)
  return code


def join() -> None:
  """Joins the other hosts, before any use of a device."""
  from scaling.parallel import hosts, platform

  platform.setup()
  hosts.start()


def _main(run: config.Run, execution: config.Execution, given_dir: str | None) -> int:
  from scaling import data
  from scaling.errors import UserError
  from scaling.parallel import hosts
  from scaling.sweep import records

  run = data.resolve(run)
  run_dir = Path(given_dir or f'runs/{run.run_id}').absolute()

  def begin() -> dict[str, Any] | None:
    """Makes the directory this run's; its result if there is one."""
    check_same(run, run_dir)
    wanted = {'run_id': run.run_id, 'run': config.to_dict(run), 'execution': config.to_dict(execution)}
    records.write_json(run_dir / 'config.json', wanted)
    before = records.state(run_dir, run.data.steps)
    return before.result if before.finished else None

  from scaling.sweep.run import disk_errors

  first = hosts.index() == 0  # of several hosts, one talks
  with disk_errors(run_dir):
    result = hosts.agree(begin, UserError)
    if first:
      print(f'run {run.run_id}: {run.data.steps} steps of {run.data.batch_tokens} tokens, in {run_dir}', flush=True)
    if result and first:
      print(f'nothing to do: {result.get("status")}')
    result = result or train(run, run_dir, execution)
  if first:
    print(closing(result, run_dir))
  if result.get('status') == 'preempted':
    return 75
  return 0 if result.get('status') in ('done', 'diverged') else 1


def make(preset: str | None, overrides: dict[str, str]) -> tuple[config.Run, config.Execution]:
  """The default run with a preset's model and overrides put in, and its execution."""
  how = {path.removeprefix('execution.'): v for path, v in overrides.items() if path.startswith('execution.')}
  changes: dict[str, Any] = {path: v for path, v in overrides.items() if not path.startswith('execution.')}
  from scaling.sweep import grid

  named = changes.get('model', preset)
  if named:
    changes['model'] = grid.preset(named)
  run = config.replace(config.Run(name=named or ''), changes)
  return run, config.replace(config.Execution(), how)


def check_same(run: config.Run, run_dir: Path) -> None:
  """Refuses a directory that belongs to another run."""
  from scaling.errors import UserError
  from scaling.sweep import records

  before = records.read_json(run_dir / 'config.json')
  if before and before.get('run_id') != run.run_id:
    raise UserError(
      f'{str(run_dir)!r} holds run {before.get("run_id")}, and these settings are run {run.run_id}: '
      'give another --run_dir, or the settings it was begun with'
    )


def train(run: config.Run, run_dir: Path, execution: config.Execution) -> dict[str, Any]:
  """Trains in this process, while a thread prints the rows as they appear; SIGINT and SIGTERM save and stop."""
  from scaling.errors import UserError
  from scaling.parallel import hosts, platform

  platform.setup()
  from scaling.train import lease, loop

  done, stop = threading.Event(), threading.Event()
  printer = threading.Thread(target=follow, args=(run, run_dir, done), daemon=True)
  if hosts.index() == 0:
    printer.start()
  try:
    with stopping(stop):
      return loop.train(run, run_dir, execution, lambda: bool(stop.is_set() | hosts.preempted()))
  except lease.Busy as error:
    raise UserError(f'{error}: wait for it, or give another --run_dir') from None
  finally:
    done.set()
    if printer.is_alive():
      printer.join(5)


@contextlib.contextmanager
def stopping(stop: threading.Event) -> Iterator[None]:
  """The first SIGINT or SIGTERM sets the event, the second acts as it always does."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

  def handle(number: int, frame: object) -> None:
    stop.set()
    signal.signal(number, before[number])

  for number in before:
    signal.signal(number, handle)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def follow(run: config.Run, run_dir: Path, done: threading.Event) -> None:
  """Prints each new row of the metrics."""
  from scaling.sweep import records

  seen = {row['step'] for row in records.read_rows(run_dir / 'metrics.jsonl')}
  while True:
    last = done.wait(0.5)
    for row in records.read_rows(run_dir / 'metrics.jsonl'):
      if row['step'] not in seen:
        seen.add(row['step'])
        print(line(row, run.data.steps), flush=True)
    if last:
      return


def line(row: dict[str, Any], steps: int) -> str:
  """One row in words."""
  parts = [f'step {row["step"]}/{steps}']
  for key, form in (('tokens', ',d'), ('loss', '.4f'), ('train_loss', '.4f'), ('bits_per_byte', '.4f'),
                    ('learning_rate', '.2e'), ('tokens_per_second', ',.0f')):  # fmt: skip
    if isinstance(row.get(key), int | float):
      parts.append(f'{key} {row[key]:{form}}')
  return '  '.join(parts)


def closing(result: Any, run_dir: Path) -> str:
  """The last line."""
  if result.get('status') == 'preempted':
    return f'stopped at step {result.get("step")}, with a checkpoint; repeat the command to resume'
  if result.get('status') == 'diverged':
    return f'diverged at step {result.get("diverged_step")}: see {run_dir / "metrics.jsonl"}'
  loss, bits = result.get('loss'), result.get('bits_per_byte')
  text = (
    f'{result.get("status")}: loss {loss:.4f} nats per token' if isinstance(loss, float) else str(result.get('status'))
  )
  return text + (f', {bits:.4f} bits per byte' if isinstance(bits, float) else '')
