"""What the command line's fit, predict and report do, as functions that return the text to print."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import context as contexts
from analysis import fit as fitting
from analysis import laws, predict, report, table, uncertainty
from scaling.errors import UserError, unknown


def fit_verb(
  source: str,
  law: str = 'chinchilla',
  *,
  select: str | None = None,
  where: str | None = None,
  loss: str | None = None,
  delta: float = 1e-3,
  bootstrap: int = 0,
  cluster: str | None = 'auto',
  rows: str = 'auto',
  drop: bool = False,
  seed: int = 0,
  out: str | None = None,
  fixed: str | None = None,
  tied: str | None = None,
  bounds: str | None = None,
  weights: str | None = None,
  resample: str = 'cluster',
  profile: str | None = None,
  starts: int = 64,
  accept: str | None = None,
) -> str:
  """`scaling fit TABLE_OR_DIR --law=NAME[,NAME]`: fits, writes `out` (fits of other laws in it are kept), returns the summaries.

  fixed 'E=1.69', tied 'beta=alpha', bounds 'E=0:2' hold for each law; profile: parameters whose profile intervals are added.

  rows: 'final' (the last row of each run), 'all' (each row), or 'auto': final where the table marks them (a study), else all.
  Held-out rows are never used.
  """
  if rows not in ('auto', 'final', 'all'):
    raise unknown('rows', rows, ('auto', 'final', 'all'))
  frame = table.read(source, select, where)
  if rows == 'auto':
    rows = 'final' if 'final' in frame.columns else 'all'
  names = [n.strip() for n in law.split(',') if n.strip()]
  for name in names:
    declared = laws.get(name)
    table.require(frame, [*declared.inputs, declared.outcome], str(source))
  made = _fit(
    frame, names, rows, loss=loss, delta=delta, bootstrap=bootstrap, cluster=cluster, drop=drop, seed=seed,
    fixed={k: _value('fixed', k, v) for k, v in _pairs('fixed', fixed).items()}, tied=_pairs('tied', tied),
    bounds={k: _ends(k, v) for k, v in _pairs('bounds', bounds).items()}, weights=weights, resample=resample, starts=starts,
    accept=tuple(n.strip() for n in (accept or '').split(',') if n.strip()),
  )  # fmt: skip
  text = '\n\n'.join(''.join([one.summary(), *_profiles(one, profile)]) for one in made)
  if out:
    path = Path(out)
    kept = [f for f in fitting.load(path) if f.law not in names] if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    fitting.save(kept + made, path)
    text += f'\n\nwritten: {path}'
  return text


def _pairs(flag: str, text: str | None) -> dict[str, str]:
  """{'E': '1.69'} of 'E=1.69'; anything else is a UserError."""
  pairs = [part.partition('=') for part in (text or '').split(',') if part.strip()]
  for name, equals, value in pairs:
    if not (name.strip() and equals and value.strip()):
      raise UserError(f'--{flag}={text}: give parameter=value pairs with commas, such as E=1.69')
  return {name.strip(): value.strip() for name, _, value in pairs}


def _value(flag: str, name: str, value: str) -> float:
  try:
    return float(value)
  except ValueError:
    raise UserError(f'--{flag}={name}={value}: {value!r} is not a number') from None


def _ends(name: str, value: str) -> tuple[float, float]:
  low, colon, high = value.partition(':')
  if not colon:
    raise UserError(f'--bounds={name}={value}: give low:high, either of which may be left out, such as E=0:2')
  return _value('bounds', name, low or '-inf'), _value('bounds', name, high or 'inf')


def _profiles(one: fitting.Fit, profile: str | None) -> list[str]:
  """Lines below a summary: the profile intervals that were asked for."""
  lines = []
  free = [n for n, moves in zip(one.declared.names, one.problem.coordinates.moving, strict=True) if moves]
  names = free if profile == 'all' else [n.strip() for n in (profile or '').split(',') if n.strip()]
  for name in names:
    if name not in one.declared.names:
      raise unknown('parameter', name, one.declared.names)
    found = uncertainty.profile(one, name, points=2)
    low, high = found['ci']
    lines.append(f'\nprofile: {name} 95% {low:.5g} to {high:.5g}' + (' (unbounded)' if any(found['unbounded']) else ''))
  return lines


def predict_verb(
  fits: str,
  *,
  law: str | None = None,
  flops: str | None = None,
  params: str | None = None,
  tokens: str | None = None,
  inputs: dict[str, str] | None = None,
  register: str | None = None,
  score: str | None = None,
  note: str = '',
) -> str:
  """`scaling predict FITS --flops=C | --params=N --tokens=D`: loss, compute-optimal N and D, with 95% intervals.

  Values may be lists, as 1e20,1e21. --flops with --params gives the cost of departing from the best size. `register` writes
  the predictions of --params and --tokens to a new file with date and hash; `score` compares such a file with a table of runs.
  """
  if score:
    if not Path(fits).exists():
      raise UserError(
        f'{fits} does not exist: give the registered prediction first, and the table of runs with --score'
      )
    rows = predict.score(fits, table.finals(table.read(score)))
    inside = int(rows['inside'].sum())
    return f'{text(rows)}\n\n{inside} of {len(rows)} inside their 95% interval; mean absolute error {rows["error"].abs().mean():.2%}'
  one = load_fit(fits, law)
  values = {
    k: numbers(k, v) for k, v in {'params': params, 'tokens': tokens, **(inputs or {})}.items() if v is not None
  }
  lines = [f'{one.law}: {one.formula}', f'fitted to {one.n_points} points of {one.n_runs} runs', '']
  if flops is not None:
    budgets = numbers('flops', flops)
    if 'flops' in one.declared.inputs:
      return '\n'.join([*lines, text(predict.loss(one, values | {'flops': budgets}))])
    if 'params' in values and 'tokens' not in values:
      parts = [predict.departure(one, c, values['params']).assign(flops=c) for c in budgets]
      lines += [
        'cost of departing from the best size (overspend: compute over what the best size needs for this loss)',
        text(pd.concat(parts)),
      ]
    elif not values:
      lines += ['compute-optimal, with flops = 6 params tokens and 95% intervals', text(predict.optimum(one, budgets))]
    else:
      raise UserError('give --flops alone, --flops with --params, or --params with --tokens')
    return '\n'.join(lines)
  if not values:
    raise UserError('give --flops=C, or ' + ' '.join(f'--{name}=...' for name in one.declared.inputs))
  if register:
    record = predict.register(one, values, register, note)
    lines += [f'written: {register}', f'date {record["date"]}', f'sha256 {record["sha256"]}', '']
  lines.append(text(predict.loss(one, values)))
  return '\n'.join(lines)


def report_verb(out_dir: str, *, figures: str | None = None, tables: str | None = None) -> str:
  """`scaling report DIR [--figures=a,b] [--tables=a,b]`: figures, tables, page; `--figures=list` says what there is.

  DIR may also be a table of runs: the report is then written beside it, in a folder of its name.
  """
  if 'list' in (figures, tables):
    return listing()
  path = Path(out_dir)
  split = lambda names: None if names is None else [n.strip() for n in names.split(',') if n.strip()]  # noqa: E731
  if path.is_file():
    context = contexts.load(path)
    folder = path.with_name(f'{path.stem}-report')
    if (folder / 'fits.json').exists():
      context.fits = fitting.load(folder / 'fits.json')
    folder.mkdir(exist_ok=True)
    return f'report: {report.build(folder, split(figures), split(tables), context)}'
  if not path.exists():
    raise UserError(f'{out_dir} does not exist: give the folder that `scaling run` wrote')
  return f'report: {report.build(path, split(figures), split(tables))}'


def listing() -> str:
  """All figures and tables with what they show and need."""
  from analysis.figures import FIGURES
  from analysis.tables import TABLES

  lines = []
  for kind, known in (('figures', FIGURES), ('tables', TABLES)):
    lines.append(f'{kind}:')
    for name, entry in known.items():
      lines += [
        f'  {name}{" (default)" if entry.default else ""}',
        f'      {entry.about}',
        f'      needs: {entry.needs}',
      ]
  return '\n'.join(lines)


def analyse(
  out_dir: str | Path,
  law_names: Sequence[str] | None = None,
  *,
  bootstrap: int = 1000,
  seed: int = 0,
  build: bool = True,
) -> str:
  """Fits each law to the final rows that are not held out, writes OUT/fits.json and the report, returns a printable summary.

  Laws that the rows cannot bear (too few points, a missing column) are named with the reason and left out.
  """
  out = Path(out_dir)
  context = contexts.load(out)
  names = list(law_names or context.study.get('laws') or ['chinchilla'])
  made, refused = [], []
  for name in names:
    try:
      made += _fit(context.frame, [name], 'final', bootstrap=bootstrap, seed=seed, drop=True)
    except UserError as error:
      refused.append(f'{name}: not fitted: {error}')
  fitting.save(made, out / 'fits.json')
  context.fits = made
  parts = [report.summary(context)] if made else []
  parts += ['\n'.join(refused)] if refused else []
  if build:
    parts.append(f'report: {report.build(out, context=context)}')
  return '\n\n'.join(parts)


def _fit(frame: pd.DataFrame, names: Sequence[str], rows: str, **options: Any) -> list[fitting.Fit]:
  if 'held_out' in frame.columns:
    frame = frame[~frame['held_out'].fillna(False).astype(bool)]
  if 'diverged' in frame.columns:
    frame = frame[~frame['diverged'].fillna(False).astype(bool)]
  if 'tokens' in frame.columns:
    frame = frame[~(frame['tokens'] == 0)]  # the evaluation before training
  if rows == 'final':
    frame = table.finals(frame)
  if frame.empty:
    raise UserError('no row is left to fit: all are held out, diverged, or before the first step')
  options = {k: v for k, v in options.items() if v is not None}
  made = []
  for name in names:
    used = _unlimited(frame, laws.get(name)) if rows == 'final' else frame
    made.append(fitting.fit(used, name, **options))
    if len(used) < len(frame):
      text = f'fitted to {len(used)} of {len(frame)} rows: the lowest loss at each {made[-1].declared.inputs[0]}'
      made[-1].settings['selection'] = text
      made[-1].warnings.append(text)
  return made


def _unlimited(frame: pd.DataFrame, law: laws.Law) -> pd.DataFrame:
  """For a law of params, tokens or flops alone, the rows that the other dials limit least: the lowest loss at each value.

  Of flops, those with a lower loss than every run of less compute. As Kaplan et al. 2020, section 1.2, define such laws.
  """
  column = law.inputs[0]
  if (
    len(law.inputs) > 1
    or column not in ('params', 'tokens', 'flops')
    or law.outcome != 'loss'
    or column not in frame.columns
  ):
    return frame
  best = frame.loc[frame.groupby(column)['loss'].idxmin()].sort_values(column)
  if column == 'flops':
    best = best[best['loss'] < best['loss'].cummin().shift(fill_value=float('inf'))]
  return best if len(best) > len(law.parameters) else frame


def load_fit(path: str, law: str | None = None) -> fitting.Fit:
  """The fit of that law (the first if not said) in a fits.json, or in the folder that holds one."""
  where = Path(path)
  fits = fitting.load(where / 'fits.json' if where.is_dir() else where)
  if not fits:
    raise UserError(f'{path} holds no fit')
  for one in fits:
    if law in (None, one.law):
      return one
  raise unknown('law', law, [f.law for f in fits])


def numbers(name: str, text: Any) -> list[float]:
  """The numbers of a flag such as --flops=1e20,1e21."""
  try:
    return [float(part) for part in str(text).split(',')]
  except ValueError:
    raise UserError(f'--{name}={text}: it must be a number such as 1e21, or several as 1e20,1e21') from None


def text(frame: pd.DataFrame) -> str:
  """Aligned columns, four significant digits; an interval as [low, high] behind its value."""
  shown = {}
  for column in frame.columns:
    if column.endswith(('_low', '_high')):
      continue
    values = [
      v if isinstance(v, str) else json.dumps(bool(v)) if isinstance(v, bool) else f'{v:.4g}'
      for v in frame[column].tolist()
    ]
    if f'{column}_low' in frame.columns:
      ends = zip(frame[f'{column}_low'], frame[f'{column}_high'], strict=True)
      values = [f'{v} [{low:.4g}, {high:.4g}]' for v, (low, high) in zip(values, ends, strict=True)]
    shown[column] = values
  widths = {c: max(len(c), *map(len, v)) for c, v in shown.items()}
  lines = ['  '.join(c.rjust(widths[c]) for c in shown)]
  lines += ['  '.join(v[i].rjust(widths[c]) for c, v in shown.items()) for i in range(len(frame))]
  return '\n'.join(lines)
