"""A study: the runs to train, which of them are held out, and the laws, figures and tables that are wanted."""

import dataclasses
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from scaling import config
from scaling.config import Execution, Run
from scaling.errors import UserError, unknown

PARAMETER_COLUMNS = (
  'params_total', 'params_non_embedding', 'params_embedding', 'params_position', 'params_attention', 'params_mlp',
  'params_norm', 'params_head',
)  # fmt: skip
FLOP_COLUMNS = ('flops_kaplan', 'flops_chinchilla', 'flops_exact', 'flops_exact_causal')


@dataclasses.dataclass(frozen=True)
class Study:
  """What a file in `experiments/` returns from its `study()` function.

  Raises UserError where a field is not one of its choices or there is no run.
  """

  name: str
  runs: Sequence[Run]
  held_out: Callable[[Run], bool] = lambda run: False  # such runs are predicted, and no law is fitted on them
  laws: Sequence[str] = ('chinchilla',)
  counting: str = 'params_non_embedding'  # the count of parameters that the laws call N
  flops: str = 'flops_chinchilla'  # the count of FLOPs that the laws and figures call C
  execution: Execution = dataclasses.field(default_factory=Execution)
  bootstrap: int = 200  # draws for the intervals
  baselines: bool = True  # n-grams on the same tokens
  figures: Sequence[str] | None = None  # None: all that the records allow
  tables: Sequence[str] | None = None
  title: str = ''
  description: str = ''

  def __post_init__(self) -> None:
    if not self.runs:
      raise UserError(f'study {self.name!r} has no runs: its grid or filter leaves none')
    for run in self.runs:
      if not isinstance(run, Run):
        raise UserError(f'study {self.name!r}: runs holds {run!r}, which is not a scaling.config.Run')
    if self.counting not in PARAMETER_COLUMNS:
      raise unknown('study.counting', self.counting, PARAMETER_COLUMNS)
    if self.flops not in FLOP_COLUMNS:
      raise unknown('study.flops', self.flops, FLOP_COLUMNS)


def largest_compute(runs: Iterable[Run], count: int = 1) -> Callable[[Run], bool]:
  """A `held_out` predicate: the `count` runs with the most training compute, by 6 N D with N non-embedding."""
  from scaling import ledger

  def compute(run: Run) -> float:
    model = run.model if run.model.vocab else dataclasses.replace(run.model, vocab=256)
    return ledger.flops_per_token(model, run.data.sequence_length).kaplan * run.data.trained_tokens

  chosen = {_cell(run) for run in sorted(runs, key=compute, reverse=True)[:count]}
  return lambda run: _cell(run) in chosen


def _cell(run: Run) -> str:
  """A run's identity without what resolving fills in, so that it is the same before and after."""
  run = config.replace(run, {'data.fingerprint': None, 'model.vocab': None, 'model.context': None})
  return config.canonical_json(config.identity(run))


def names() -> list[str]:
  """The studies that `experiments/` has."""
  return sorted(p.stem for p in _folder().glob('*.py') if not p.stem.startswith('_'))


def load(name_or_path: str, overrides: Mapping[str, str] | None = None) -> Study:
  """The study of a file in `experiments/`, by name, or of any Python file, by path.

  Args:
    name_or_path: 'quickstart', or 'my/study.py' with a `study()` function.
    overrides: config path -> value put into every run, as `--set` gives them; 'execution.*' too.

  Raises:
    UserError: an unknown name, a file without `study()`, or any error that the file raises, told with its line.
  """
  path = Path(name_or_path)
  if path.suffix == '.py':
    if not path.is_file():
      near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob('*.py')], n=1)
      hint = f"; did you mean '{path.parent / near[0]}'?" if near else ''
      raise UserError(f'study file {name_or_path!r} does not exist{hint}')
  else:
    path = _folder() / f'{name_or_path}.py'
    if '/' in name_or_path or not path.is_file():
      raise unknown('study', name_or_path, names())
  study = _call(path)
  if not study.name:
    study = dataclasses.replace(study, name=path.stem)
  return override(study, overrides or {})


def override(study: Study, overrides: Mapping[str, str]) -> Study:
  """The study with `--set` put into each run (and into its execution, for paths 'execution.*')."""
  if not overrides:
    return study
  execution = {p.removeprefix('execution.'): v for p, v in overrides.items() if p.startswith('execution.')}
  runs = {p: v for p, v in overrides.items() if not p.startswith('execution.')}
  if 'model' in runs:
    from scaling.sweep import grid

    runs['model'] = grid.preset(runs['model'])
  # A run that was held out stays so, though its identity changes.
  changed, held = [], set()
  for run in study.runs:
    new = config.replace(run, {'name': _renamed(run.name, runs), **runs})
    changed.append(new)
    if study.held_out(run):
      held.add(_cell(new))
  return dataclasses.replace(
    study,
    runs=changed,
    held_out=lambda run: _cell(run) in held,
    execution=config.replace(study.execution, execution),
  )


def _renamed(name: str, overrides: Mapping[str, str]) -> str:
  """A run's name with the values in it replaced that an override changes."""
  for path, value in overrides.items():
    leaf = path.rpartition('.')[2]
    name = re.sub(rf'(?<!\S){leaf}=\S+', lambda _, leaf=leaf, value=value: f'{leaf}={value}', name)
  return name


def _call(path: Path) -> Study:
  """Runs the one file that the user named, and its `study()`."""
  name = f'_study_{path.stem}'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses and pickling of functions look modules up
  sys.path.insert(0, str(path.parent.resolve()))
  try:
    spec.loader.exec_module(module)
    if not callable(getattr(module, 'study', None)):
      raise UserError(f'study file {str(path)!r} has no study() function that returns a scaling.sweep.study.Study')
    made = module.study()
  except UserError:
    raise
  except SyntaxError as error:
    raise UserError(f'study file {str(path)!r}, line {error.lineno}: {error.msg}') from None
  except Exception as error:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f', line {lines[-1]}' if lines else ''
    raise UserError(f'study file {str(path)!r}{where}: {type(error).__name__}: {error}') from error
  finally:
    sys.path.remove(str(path.parent.resolve()))
  if not isinstance(made, Study):
    raise UserError(f'study file {str(path)!r}: study() returned {type(made).__name__}, not a Study')
  return made


def _folder() -> Path:
  import experiments

  return Path(experiments.__file__).parent
