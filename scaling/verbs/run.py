"""`scaling run`: a study from its plan to its report."""

import signal
import sys
import time
from pathlib import Path

from absl import flags

from scaling import verbs
from scaling.errors import unknown

USAGE = 'STUDY [--out=DIR] [--engine=local|print] [--set path=value ...]'
SUMMARY = 'plans a study, trains what is missing, fits its laws, writes the report; safe to repeat'
DETAILS = """
A run's identity is a hash of its config, so that repeating the command trains only what has no result yet; a sweep that was
stopped or killed is resumed by repeating it. On a CPU there is one worker process per core, elsewhere one per device. A worker
that dies is replaced; a run that fails three times without getting further is reported, and the others go on.

DIR holds runs/ (one folder per run), runs.parquet (one row per evaluation), study.json, fits.json, tables/, figures/, report.html,
and logs/ of the workers.

--engine=print starts nothing: it writes the configs and prints one command per owed run, each safe to repeat, for a scheduler of
your own; afterwards the same command with the local engine collects and fits.
"""
EXAMPLES = (
  'scaling run quickstart',
  'scaling run quickstart --out=out/other-seed --set seed=1',
  'scaling run my/study.py --engine=print > commands.txt',
)
ARGUMENTS = (1, 1)
ENGINES = ('local', 'print')


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string('out', None, 'the folder of results; out/STUDY if not given', flag_values=values)
  flags.DEFINE_string('engine', 'local', f'where runs run: {" or ".join(ENGINES)}', flag_values=values)
  flags.DEFINE_integer('workers', None, 'processes side by side; one per core or device if not given, fewer where memory '
                       'is short', lower_bound=1, flag_values=values)  # fmt: skip
  flags.DEFINE_float('stuck_seconds', 900.0, 'a worker without a sign of life for so many seconds is replaced',
                     lower_bound=1.0, flag_values=values)  # fmt: skip
  flags.DEFINE_boolean('fit', True, 'fit laws and write the report when the runs are done', flag_values=values)
  verbs.define_set(values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Trains, fits and reports; prints the fitted laws, held-out predictions and where the report is."""
  if values.engine not in ENGINES:
    raise unknown('engine', values.engine, ENGINES)
  from scaling.sweep import plan, run
  from scaling.sweep import study as studies

  began = time.monotonic()
  study = studies.load(args[0], verbs.overrides(values))
  out_dir = Path(values.out or verbs.default_out(study)).absolute()
  if values.fit:
    check_names(study)
  if values.engine == 'print':
    from scaling.sweep.engines import print as print_engine

    with run.disk_errors(out_dir):
      made = plan.make(study, out_dir, values.workers)
      run.write_manifest(made)
      run.prepare(made)
    print('\n'.join(print_engine.commands(made)))
    return 0

  def say(text: str) -> None:
    print(text, flush=True)

  say(f'{study.name}: {len(study.runs)} runs, results in {shown(out_dir)}')
  outcome = run.run_study(study, out_dir, values.workers, say=say, stuck_seconds=values.stuck_seconds)
  total, owed = len(outcome.plan.cells), len(outcome.plan.owed)
  if outcome.stopped_by:
    say(f'stopped: {total - owed} of {total} runs are done; repeat the command to resume')
    return 130 if outcome.stopped_by == signal.SIGINT else 75
  if outcome.sweep is None:
    say(f'all {total} runs are done: nothing was trained')
  else:
    peak = plan.bytes_text(outcome.sweep.peak_bytes)
    say(f'{total - owed} of {total} runs are done, {len(outcome.diverged)} of them diverged; '
        f'{outcome.sweep.restarts} workers were replaced; memory at most {peak}')  # fmt: skip
  for name in outcome.diverged:
    say(f'diverged: {name}')
  for name, message in outcome.failed:
    print(f'scaling: run {name!r} failed: {message}', file=sys.stderr)
  if outcome.sweep is not None and outcome.sweep.gave_up:
    print('scaling: the sweep was given up, as run after run failed in this way', file=sys.stderr)
  if values.fit and total - owed:
    say('')
    say(analysis_text(study, out_dir, outcome.records))
  say(f'took {time.monotonic() - began:.1f} s')
  return 1 if outcome.failed or owed else 0


def check_names(study: 'object') -> None:
  """Refuses unknown laws, figures and tables before anything is trained."""
  from analysis import laws

  for name in study.laws:
    laws.get(name)
  if study.figures or study.tables:
    from analysis import figures, tables

    for name in study.figures or ():
      figures.get(name)
    for name in study.tables or ():
      tables.get(name)


def analysis_text(study: 'object', out_dir: Path, records_hash: str) -> str:
  """Fits and reports, or, if neither the records nor the analysis changed since, what was said then."""
  from scaling.sweep import records

  stamp_path = out_dir / '.analysis.json'
  stamp = {'records': records_hash, 'analysis': code_hash()}
  before = records.read_json(stamp_path) or {}
  if all(before.get(key) == value for key, value in stamp.items()) and (out_dir / 'report.html').is_file():
    return before['text']
  text = verbs.analysis().analyse(out_dir, study.laws, bootstrap=study.bootstrap)
  records.write_json(stamp_path, {**stamp, 'text': text})
  return text


def code_hash() -> str:
  """A hash of the analysis code: what it would make of equal records may change with it."""
  import hashlib

  import analysis

  digest = hashlib.sha256()
  folder = Path(analysis.__file__).parent
  for path in sorted(p for p in folder.rglob('*') if p.suffix in ('.py', '.js', '.css')):
    digest.update(path.read_bytes())
  return digest.hexdigest()


def shown(path: Path) -> str:
  """A path as short as it can be said from here."""
  try:
    return str(path.relative_to(Path.cwd()))
  except ValueError:
    return str(path)
