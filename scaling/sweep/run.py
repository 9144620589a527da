"""A study from its plan to its table of records: trains what is missing, on workers of this machine."""

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from scaling import config
from scaling.errors import UserError
from scaling.sweep import live, plan, records, supervise, timing
from scaling.sweep.engines import local
from scaling.sweep.plan import Plan
from scaling.sweep.study import Study

BYTES_PER_PARAMETER = 12  # of a checkpoint: weights and AdamW's two moments in float32


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a sweep ended."""

  plan: Plan
  sweep: supervise.Sweep | None  # None: nothing was missing
  frame: Any  # the table of records, a pandas DataFrame
  failed: tuple[tuple[str, str], ...]  # (run's name, one line)
  diverged: tuple[str, ...]
  stopped_by: int  # a signal number, or 0
  records: str  # a hash of the records that the table was made from


def run_study(
  study: Study,
  out_dir: Path | str,
  workers: int | None = None,
  view: live.Plain | None = None,
  say: Callable[[str], None] = print,
  command: Sequence[str] | None = None,
  stuck_seconds: float = 900.0,
) -> Outcome:
  """Trains the runs of a study that have no result in `out_dir`, then collects all records there.

  Args:
    study: what to train.
    out_dir: gets `runs/<run_id>/`, `study.json`, `runs.parquet` and `logs/`.
    workers: processes side by side; by default one per core or device, fewer where memory is short.
    view: shows the sweep while it runs.
    say: takes lines of text for people.
    command: starts a worker; None: the training worker.
    stuck_seconds: a worker without a sign of life for so long is replaced.

  Raises:
    UserError: as `plan.make`; or the folder is in use by another sweep, cannot be written, or its disk is full.
  """
  out_dir = Path(out_dir).absolute()
  with disk_errors(out_dir):
    out_dir.mkdir(parents=True, exist_ok=True)
    with lock(out_dir):
      made = plan.make(study, out_dir, workers)
      owed = made.owed
      write_manifest(made)
      sweep = None
      if owed:
        check_disk(made)
        count, sizes = affordable(made, say) if workers is None else (workers, {})
        prepare(made)
        sweep = supervise.Sweep(
          jobs=[_job(made, cell, sizes.get(cell.run_id, 0)) for cell in owed],
          slots=local.slots(count),
          logs=out_dir / 'logs',
          view=view or live.view(),
          command=command or local.WORKER,
          stuck_seconds=stuck_seconds,
        )
        with sweep.view:
          sweep.run()
        made = plan.make(study, out_dir, workers)
        trained = sum((cell.state.result or {}).get('seconds') or 0.0 for cell in made.cells)
        if trained > timing.MEMORABLE_SECONDS and made.rate.source.endswith('finished runs'):
          timing.remember(made.rate)
      frame = records.collect(out_dir)
      if study.baselines and not (sweep and sweep.stopped_by):
        write_manifest(made, baselines(made, say))
      failed = tuple((job.name, job.message) for job in (sweep.of_status('failed') if sweep else ()))
      return Outcome(
        plan=made,
        sweep=sweep,
        frame=frame,
        failed=failed,
        diverged=tuple(cell.name for cell in made.cells if cell.state.status == 'diverged'),
        stopped_by=sweep.stopped_by if sweep else 0,
        records=records.fingerprint(out_dir),
      )


def prepare(made: Plan) -> None:
  """Writes the config of each owed run into its directory, which is all that a worker needs."""
  for cell in made.owed:
    run_dir = made.out_dir / 'runs' / cell.run_id
    wanted = {
      'run_id': cell.run_id,
      'run': config.to_dict(cell.run),
      'execution': config.to_dict(made.study.execution),
    }
    if records.read_json(run_dir / 'config.json') != wanted:
      records.write_json(run_dir / 'config.json', wanted)


def write_manifest(made: Plan, baselines: Sequence[dict[str, Any]] | None = None) -> None:
  """OUT/study.json: what analysis needs to know of the study, and the runs it consists of."""
  study, path = made.study, made.out_dir / 'study.json'
  before = records.read_json(path) or {}
  manifest = {
    'name': study.name,
    'title': study.title or study.name,
    'description': study.description,
    'counting': study.counting,
    'flops': study.flops,
    'laws': list(study.laws),
    'bootstrap': study.bootstrap,
    'figures': None if study.figures is None else list(study.figures),
    'tables': None if study.tables is None else list(study.tables),
    'held_out': [cell.run_id for cell in made.cells if cell.held_out],
    'baselines': before.get('baselines', []) if baselines is None else list(baselines),
    'runs': [
      {'run_id': cell.run_id, 'name': cell.name, 'config': config.to_dict(cell.run)} for cell in made.cells
    ],
  }  # fmt: skip
  if manifest != before:
    records.write_json(path, manifest)


def baselines(made: Plan, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
  """The n-gram baselines of each distinct text of the study, on as many tokens as its largest run may see."""
  from scaling.data import ngrams

  largest: dict[str, Any] = {}
  for cell in made.cells:
    data = cell.run.data
    key = config.canonical_json([data.fingerprint, data.tokenizer, data.validation_tokens, data.unique_tokens])
    if key not in largest or data.tokens > largest[key].data.tokens:
      largest[key] = cell.run
  rows = []
  for run in largest.values():
    rows += [{'corpus': run.data.corpus, 'tokenizer': run.data.tokenizer, **row} for row in ngrams.baselines(run)]
  return rows


def affordable(made: Plan, say: Callable[[str], None] = print) -> tuple[int, dict[str, int]]:
  """Workers that memory holds, at most one per slot and owed run; and bytes by run id, where they have to be watched."""
  count = min(made.workers, len(made.owed))
  if local.platform() != 'cpu':
    return count, {}  # the state is in the devices' memory
  free = min(psutil.virtual_memory().available, local.memory_limit())
  if sum(sorted(map(plan.memory_bound, made.owed))[-count:]) < 0.8 * free:
    return count, {}
  sizes = {cell.run_id: made.memory(cell) for cell in made.owed}
  largest = sorted(sizes.values(), reverse=True)
  fitting = count
  while fitting > 1 and sum(largest[:fitting]) > 0.9 * free:
    fitting -= 1
  if fitting < count:
    say(f'{fitting} of {count} workers: {count} would take {plan.bytes_text(sum(largest[:count]))} of memory, '
        f'and {plan.bytes_text(free)} are free')  # fmt: skip
  if largest[0] > free:
    say(f'note: the largest run takes about {plan.bytes_text(largest[0])}, and {plan.bytes_text(free)} are free')
  return fitting, sizes


def check_disk(made: Plan) -> None:
  """Refuses to begin where the checkpoints would not fit on the disk."""
  keep = made.study.execution.keep_checkpoints + 1  # one is being written
  need = sum(cell.parameters.total for cell in made.owed) * BYTES_PER_PARAMETER * keep
  free = shutil.disk_usage(made.out_dir).free
  if need > free:
    raise UserError(
      f'the disk of {str(made.out_dir)!r} has {plan.bytes_text(free)} free, and the checkpoints of {len(made.owed)} '
      f'runs take up to {plan.bytes_text(need)}: free some, or give --out a folder elsewhere'
    )


@contextlib.contextmanager
def lock(out_dir: Path) -> Iterator[None]:
  """One sweep at a time in a folder; the system frees it when the process ends, however it ends."""
  with (out_dir / '.lock').open('a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      owner = file.read().strip() or 'unknown'
      raise UserError(
        f'another `scaling run` (process {owner}) is at work in {str(out_dir)!r}: wait for it, or give another --out'
      ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield


@contextlib.contextmanager
def disk_errors(out_dir: Path) -> Iterator[None]:
  """Tells a full, read-only or forbidden disk in one line."""
  try:
    yield
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise UserError(f'no space left on the disk of {str(out_dir)!r}: free some and repeat the command') from error
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
      raise UserError(
        f'cannot write to {str(out_dir)!r} ({os.strerror(error.errno)}): give --out a folder that can be written'
      ) from error
    raise


def _job(made: Plan, cell: plan.Cell, size: int) -> supervise.Job:
  return supervise.Job(
    run_id=cell.run_id,
    name=cell.name,
    run_dir=made.out_dir / 'runs' / cell.run_id,
    steps=cell.run.data.steps,
    batch_tokens=cell.run.data.batch_tokens,
    seconds=cell.seconds,
    shape=cell.shape,
    bytes=size,
    best_step=cell.state.step,
  )
