"""A worker process: trains run directories one after another, and tells how each ended.

    python -m scaling.train.worker --run_dir=D [--run_dir=E ...] [--execution=JSON]
    python -m scaling.train.worker --stdin
    python -m scaling.train.worker --run_dir=D --coordinator=HOST:PORT --hosts=N --host=I

A directory holds config.json: {'run_id', 'run', 'execution'}; --execution overrides fields of the latter. With --stdin,
directories are read one a line until the input ends, and one JSON line per run is written to standard output:
{"run_dir", "run_id", "status", "step", "error", "kind", "seconds"}. Runs of one shape share their compiled programs.

status      exit  meaning
done        0     result.json is complete, now or before; nothing is imported for a run that is done
diverged    0     likewise: the loss was not finite at some step
preempted   75    SIGTERM or SIGINT: a checkpoint is written; start again to go on
busy        75    another live worker trains it
failed      1     failure.json has one line; log.txt the traceback
lost        75    another host is gone: start all of them again to go on from the last checkpoint

A process per host, all with the same --run_dir, trains one run on all of their devices: see scaling/parallel/hosts.py.
Under srun and on TPU pods they find each other; elsewhere give --coordinator, --hosts and --host.

With several runs the exit status is 75 if any is left to do, else 1 if any failed.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.parallel import hosts
from scaling.train import lease, records

DONE, FAILED, AGAIN = 0, 1, 75
EXIT = {'done': DONE, 'diverged': DONE, 'failed': FAILED, 'preempted': AGAIN, 'busy': AGAIN, 'lost': AGAIN}


class Stop:
  """Becomes true at the first SIGTERM or SIGINT. While `idle`, the process just leaves; a second signal always does."""

  def __init__(self) -> None:
    self.asked = False
    self.idle = False
    self.install()

  def install(self) -> None:
    """Also called after jax.distributed has started, which puts in a handler of its own."""
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._handle)

  def __call__(self) -> bool:
    return self.asked

  def _handle(self, number: int, frame: Any) -> None:
    if self.idle or (self.asked and number == signal.SIGINT):
      os._exit(AGAIN)
    self.asked = True


def train_dir(run_dir: Path, execution: dict[str, Any] | None = None, stop: Any = lambda: False) -> dict[str, Any]:
  """Trains one directory and returns how it ended; raises nothing. What failed is in failure.json, log.txt and here."""
  began = time.monotonic()
  out: dict[str, Any] = {'run_dir': str(run_dir), 'run_id': None, 'status': 'failed', 'step': None}
  try:
    out['run_id'] = (records.read_json(run_dir / records.CONFIG) or {}).get('run_id')
    # Of several hosts, the first decides whether a run is done: their views of the files may differ for moments.
    ended = records.result(run_dir) if hosts.count() == 1 else None
    if ended is None:
      with _logged(run_dir / records.LOG):
        ended = _train(run_dir, execution or {}, stop)
    out |= {'status': ended['status'], 'step': ended['step']}
  except BaseException as error:
    if isinstance(error, lease.Busy | lease.Lost):  # another worker has it: nothing here is ours to write
      out |= {'status': 'busy', 'error': str(error)}
    elif hosts.is_lost(error):
      out |= {'status': 'lost', **_record_failure(run_dir, error)}
    else:
      out |= _record_failure(run_dir, error)
  return {**out, 'seconds': round(time.monotonic() - began, 3)}


def _train(run_dir: Path, overrides: dict[str, Any], stop: Any) -> dict[str, Any]:
  from scaling import config

  run, execution = records.read_config(run_dir)
  execution = config.replace(execution, overrides)
  from scaling.parallel import platform

  platform.setup()
  from scaling.train import loop

  return loop.train(run, run_dir, execution, lambda: bool(stop() | hosts.preempted()))


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
  """Sends warnings and errors of all libraries and threads to a file: the user gets one line, not their tracebacks."""
  root, handler = logging.getLogger(), logging.FileHandler(path, encoding='utf-8', delay=True)
  handler.setLevel(logging.WARNING)
  handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(name)s: %(message)s'))
  handler.handleError = lambda record: None  # a full disk must not make its own noise
  handlers, hook = root.handlers[:], threading.excepthook
  root.handlers[:] = [handler]
  threading.excepthook = lambda failed: root.error(
    'in thread %s', failed.thread, exc_info=(failed.exc_type, failed.exc_value, failed.exc_traceback)
  )
  try:
    yield
  finally:
    root.handlers[:], threading.excepthook = handlers, hook
    with contextlib.suppress(OSError):
      handler.close()


def describe(error: BaseException) -> tuple[str, str]:
  """(kind, one line) of what ended a run: user, disk, memory, interrupted, lost or crash."""
  text = (str(error).strip().splitlines() or [''])[0]
  if hosts.is_lost(error):
    return 'lost', f'another host is gone: {text[:300]}'
  if records.disk_is_full(error):
    return 'disk', 'no space left on the disk of the run directory: free some and start again'
  if isinstance(error, UserError):
    return 'user', text
  if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error) or 'Out of memory' in str(error):
    return 'memory', f'out of memory: {text[:300]}'
  if isinstance(error, KeyboardInterrupt | SystemExit):
    return 'interrupted', 'interrupted before a checkpoint could be written'
  return 'crash', f'{type(error).__name__}: {text[:300]}'


def _record_failure(run_dir: Path, error: BaseException) -> dict[str, Any]:
  kind, line = describe(error)
  last = records.read_rows(run_dir / records.METRICS)[-1:]
  failure = {'error': line, 'kind': kind, 'step': last[0]['step'] if last else None}
  try:
    if kind != 'user':
      with (run_dir / records.LOG).open('a', encoding='utf-8') as log:
        log.write(''.join(traceback.format_exception(error)))
    if kind != 'lost' or not (run_dir / records.FAILURE).exists():  # rather the cause, from the host that had it
      records.write_json(run_dir / records.FAILURE, failure)
  except OSError:
    pass  # no directory, or no space even for this: the caller still prints the line
  return failure


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog='python -m scaling.train.worker', description=__doc__.split('\n')[0])
  parser.add_argument('--run_dir', action='append', type=Path, default=[], help='a run directory; may be repeated')
  parser.add_argument('--stdin', action='store_true', help='read run directories from standard input, one a line')
  parser.add_argument('--execution', type=json.loads, default={}, help='JSON object of fields of execution to override')
  parser.add_argument('--coordinator', help='of many hosts: the address and port of host 0 (or SCALING_COORDINATOR)')
  parser.add_argument('--hosts', help='of many hosts: how many (or SCALING_HOSTS)')
  parser.add_argument('--host', help='of many hosts: the number of this one, from 0 (or SCALING_HOST)')
  args = parser.parse_args(argv)
  if not args.run_dir and not args.stdin:
    parser.error('give --run_dir=DIR, or --stdin')
  if args.stdin and (args.coordinator or args.hosts or args.host):
    parser.error('--stdin serves one process alone: with several hosts, give each --run_dir=DIR')
  stop = Stop()
  if not args.stdin and not all(records.result(run_dir) for run_dir in args.run_dir):
    _join(args, stop)
  codes = []
  for run_dir in args.run_dir:
    ended = train_dir(run_dir, args.execution, stop)
    if ended.get('error'):
      print(f'{run_dir}: {ended["error"]}', file=sys.stderr)
    codes.append(EXIT[ended['status']])
    if hosts.count() > 1 and ended['status'] == 'failed':
      hosts.fail(codes[-1])  # the others learn of it from the closed connection, or the missing heartbeat
    if hosts.count() > 1 and ended['status'] == 'lost':
      hosts.leave(codes[-1])
    # Of several hosts, one alone must not leave: its signal reaches all of them through the run.
    if ended['status'] == 'preempted' or (stop() and hosts.count() == 1):
      codes.append(AGAIN if ended['status'] == 'preempted' or run_dir != args.run_dir[-1] else codes[-1])
      break
  if args.stdin and not stop():
    codes.append(serve(args.execution, stop))
  code = AGAIN if AGAIN in codes else max(codes)
  if hosts.count() > 1:
    hosts.stop(code)
  return code


def _join(args: argparse.Namespace, stop: Stop) -> None:
  """Joins the other hosts, if there are any; ends the process with one line if that cannot be."""
  stop.idle = True
  try:
    settings = hosts.settings(args.coordinator, args.hosts, args.host)
    if settings is not None:
      from scaling.parallel import platform

      platform.setup()
      hosts.start(args.coordinator, args.hosts, args.host)
  except UserError as error:
    print(error, file=sys.stderr)
    hosts.leave(FAILED)
  stop.idle = False
  stop.install()


def serve(execution: dict[str, Any], stop: Stop) -> int:
  """Trains what standard input names until it ends."""
  answers = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)  # whatever a library prints must not mix with the answers
  while not stop():
    stop.idle = True
    line = sys.stdin.readline()
    stop.idle = False
    if not line:
      return DONE
    if line.strip():
      print(json.dumps(train_dir(Path(line.strip()), execution, stop)), file=answers, flush=True)
  return AGAIN


if __name__ == '__main__':
  status = main()
  if status == 1:  # libraries cut off in the middle of a save complain while they are torn down; the line has been said
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)
