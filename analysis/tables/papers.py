"""Tables in the form of the papers that introduced them, and the checklist of what an analysis must report."""

import numpy as np
import pandas as pd

from analysis import frontier, predict
from analysis.context import Context, Unavailable
from analysis.figures import ticks
from analysis.tables.spec import Column, Table, pick, table
from analysis.tables.spine import shape_rows

CHINCHILLA_SIZES = (400e6, 1e9, 10e9, 67e9, 175e9, 280e9, 520e9, 1e12, 10e12)  # Hoffmann et al. 2022, table 3


@table('chinchilla-2', 'rows over several sizes and budgets')
def chinchilla_2(context: Context) -> Table:
  """Exponents a and b by approach with intervals (Hoffmann et al. 2022, table 2)."""
  found, missing = context.approaches
  if not found:
    raise Unavailable('; '.join(missing))
  label = {
    'envelope': '1. Minimum over training curves',
    'isoflop': '2. IsoFLOP curves',
    'parametric': '3. Parametric model of the loss',
  }
  rows = []
  for one in found:
    row = {'approach': label[one.name]}
    for name in ('a', 'b'):
      row[name] = one.estimate[name]
      row[f'{name}_low'], row[f'{name}_high'] = one.interval(name)
    rows.append(row)
  rows.append({'approach': 'Kaplan et al. 2020 (published)', 'a': 0.73, 'b': 0.27})
  columns = [Column('approach', 'Approach')]
  for name, text in (('a', 'a, N ~ C^a'), ('b', 'b, D ~ C^b')):
    columns += [
      Column(name, text, 'fixed', 3),
      Column(f'{name}_low', '95% low', 'fixed', 3),
      Column(f'{name}_high', '95% high', 'fixed', 3),
    ]
  frame = pd.DataFrame(rows)
  text = 'Exponents of compute-optimal parameters and tokens.' + (f' Missing: {"; ".join(missing)}.' if missing else '')
  return Table('Scaling exponents by approach', text, frame, pick(frame, columns))


@table('chinchilla-3', 'a fit of loss against params and tokens')
def chinchilla_3(context: Context) -> Table:
  """FLOPs and tokens that are compute-optimal for given sizes (Hoffmann et al. 2022, table 3)."""
  fit, rows = context.joint, context.finals
  most = float(rows['params'].max())
  own = [float(f'{s:.1g}') for s in np.geomspace(rows['params'].min(), most * 100, 9)]
  sizes = CHINCHILLA_SIZES if most >= 1e8 else own
  # on the frontier params rise with compute: find the budget whose optimum has this size
  grid = np.geomspace(1e3, 1e34, 4000)
  n, _ = frontier.optimal(fit, grid)
  order = np.argsort(n)
  budgets = np.exp(np.interp(np.log(sizes), np.log(n[order]), np.log(grid[order])))
  frame = predict.optimum(fit, budgets).assign(params=list(sizes))
  frame['beyond'] = np.where(frame['params'] > most, 'extrapolated', '')
  columns = [
    Column('params', 'Parameters', 'count'), Column('flops', 'FLOPs', 'flops'), Column('tokens', 'Tokens', 'count'),
    Column('tokens_low', '95% low', 'count'), Column('tokens_high', '95% high', 'count'), Column('tokens_per_param', 'Tokens/param', 'number'),
    Column('loss', 'Loss', 'fixed', 4), Column('beyond', ''),
  ]  # fmt: skip
  text = (
    f'By the fitted law {fit.law} on compute = 6 x parameters x tokens; intervals of the tokens are at that compute.'
  )
  return Table('Compute and tokens for optimal training by size', text, frame, pick(frame, columns))


@table('chinchilla-a9', 'columns of shape: width, layers, heads')
def chinchilla_a9(context: Context) -> Table:
  """All trained shapes in the columns of Hoffmann et al. 2022, table A9."""
  frame = shape_rows(context)
  if not {'width', 'layers'} & set(frame.columns):
    raise Unavailable('columns width and layers in the rows')
  frame = frame.assign(_order=frame['_size']).drop_duplicates(
    [c for c in ('width', 'layers', 'heads', '_size') if c in frame.columns]
  )
  frame = frame.assign(params_shown=frame['_size'])
  columns = [
    Column('params_shown', 'Parameters', 'count'), Column('width', 'd_model', 'whole'), Column('mlp_width', 'ffw_size', 'whole'),
    Column('head_size', 'kv_size', 'whole'), Column('heads', 'n_heads', 'whole'), Column('layers', 'n_layers', 'whole'),
  ]  # fmt: skip
  return Table(
    'All models', f'Parameters: {context.params_label.lower()}.', frame.reset_index(drop=True), pick(frame, columns)
  )


@table('gpt3-2.1', 'columns of shape, batch and learning rate')
def gpt3_2_1(context: Context) -> Table:
  """Sizes, architectures and hyperparameters in the columns of Brown et al. 2020, table 2.1."""
  frame = shape_rows(context)
  if not {'width', 'layers'} & set(frame.columns):
    raise Unavailable('columns width and layers in the rows')
  frame['model'] = [f'{ticks.text(float(n), "count")}' for n in frame['_size']]
  columns = [
    Column('model', 'Model'), Column('params_total', 'n_params', 'count'), Column('layers', 'n_layers', 'whole'), Column('width', 'd_model', 'whole'),
    Column('heads', 'n_heads', 'whole'), Column('head_size', 'd_head', 'whole'), Column('batch_tokens', 'Batch size (tokens)', 'count'),
    Column('learning_rate_peak', 'Learning rate', 'number', 2),
  ]  # fmt: skip
  return Table(
    'Sizes, architectures and learning hyperparameters',
    'One row per shape and set of hyperparameters.',
    frame,
    pick(frame, columns),
  )


@table('checklist', 'a fit', default=True)
def checklist(context: Context) -> Table:
  """What an analysis must report, filled from the fit's own settings and the records; what is missing is said."""
  if not context.fits:
    raise Unavailable('a fit: scaling fit DIR --law=chinchilla --out=DIR/fits.json')
  fit, frame, study = context.fits[0], context.frame, context.study
  s, c = fit.settings, fit.certificate or {}
  parameters = len(fit.estimate)
  both = [x for x in frame.columns if x.startswith('params_') and x.endswith(('non_embedding', 'total'))]
  rates = _rates(context)
  found, missing = context.approaches
  held = context.held_out
  rows = [
    ('Form', f'{fit.law}: {fit.formula}'),
    ('Loss function', f'{s.get("loss", "?")}' + (f', delta {s["delta"]:g}' if s.get('delta') else '') + (f', weights {s["weights"]}' if s.get('weights') else ', no weights')),
    ('Points, runs, parameters', f'{fit.n_points} points of {fit.n_runs} runs for {parameters} parameters'
     + (' (few: at most two points to spare)' if fit.n_points <= parameters + 2 else '')),
    ('Counting of parameters', f'{context.params_label}' + (f'; also in the records: {", ".join(both)}' if both else '; no other counting in the records')),
    ('Counting of compute', ', '.join(x for x in frame.columns if x.startswith('flops_')) or ('column flops' if 'flops' in frame.columns else '6 params tokens')),
    ('Tokenizer, data, evaluation', _values(frame, 'tokenizer', 'corpus', 'data.validation_tokens') + f'; {context.loss_label.lower()}'),
    ('Learning rate, batch, schedule', _values(frame, 'learning_rate_peak', 'batch_size', 'optim.schedule', 'optim.warmup_fraction') + rates),
    ('Points used', _points(context, fit)),
    ('Optimiser of the fit', f'{c.get("starts", "?")} starts, {_share(c.get("share_at_best"))} reach the best; gradient norm {_short(c.get("gradient_norm"))}; '
     f'Hessian condition {_short(c.get("hessian_condition"))}'),
    ('Bounds and identifiability', _list('on a bound: ', c.get('at_bound')) + '; ' + _list('not identified: ', c.get('unidentified'))),
    ('Parameters at full precision', ', '.join(f'{k} = {v!r}' for k, v in fit.estimate.items())),
    ('Uncertainty', f'{s.get("interval", "?")}; seeds per cell: {_replicates(context)}'),
    ('Held-out prediction', _held(context) if len(held) else 'missing: no run was held out'),
    ('Agreement of approaches', '; '.join(f'{one.name} a = {one.estimate["a"]:.3f}' for one in found) + (f'; missing: {"; ".join(missing)[:200]}' if missing else '')),
    ('Sensitivity', 'not in this table: scaling report DIR --figures=specification,profiles,backtest'),
    ('Residuals', 'figure residuals; baselines: ' + (', '.join(b['name'] for b in context.baselines) or 'missing')),
    ('Data and code', _values(frame, 'data.fingerprint', 'seed') + (f'; study {study["name"]}' if study.get('name') else '') + '; each run by the hash of its config'),
  ]  # fmt: skip
  out = pd.DataFrame(rows, columns=['item', 'report'])
  text = f'Filled from the settings of the first fit ({fit.law}) and the records. "Missing" means that the records do not say.'
  return Table('Reporting checklist', text, out, [Column('item', 'Item'), Column('report', 'This analysis')])


def _values(frame: pd.DataFrame, *columns: str) -> str:
  """Distinct values of some columns: all of few, the range of many."""
  parts = []
  for column in columns:
    if column not in frame.columns or frame[column].isna().all():
      continue
    values = frame[column].dropna().unique()
    name = column.split('.')[-1]
    if len(values) <= 4:
      parts.append(f'{name} {", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)}')
    elif pd.api.types.is_numeric_dtype(frame[column]):
      parts.append(f'{name} {values.min():g} to {values.max():g} ({len(values)} values)')
    else:
      parts.append(f'{name}: {len(values)} values')
  return '; '.join(parts) or 'missing'


def _rates(context: Context) -> str:
  rows = context.finals
  if 'learning_rate_peak' not in rows.columns:
    return ''
  most = rows.groupby(['params', 'tokens'])['learning_rate_peak'].nunique().max()
  return f'; {most} learning rates per cell' + (' (not tuned in this study)' if most == 1 else '')


def _replicates(context: Context) -> str:
  rows = context.finals
  if 'seed' not in rows.columns:
    return 'missing'
  counts = rows.groupby(['params', 'tokens'])['seed'].nunique()
  return f'{counts.min()}' if counts.min() == counts.max() else f'{counts.min()} to {counts.max()}'


def _points(context: Context, fit: object) -> str:
  kind = 'final rows only' if fit.n_points == len(context.fitted) else 'all rows given'
  dropped = fit.settings.get('rows_dropped') or []
  why = '; '.join(f'{d}' for d in dropped)[:200] if isinstance(dropped, list) else str(dropped)
  diverged = int(context.frame['diverged'].fillna(False).sum()) if 'diverged' in context.frame.columns else 0
  return f'{kind}; dropped: {why or "none"}; rows of diverged runs: {diverged}; held out: {len(context.held_out)} runs'


def _held(context: Context) -> str:
  from analysis.tables.spine import predictions

  try:
    frame = predictions(context).frame
  except Unavailable as error:
    return f'missing: {error}'
  parts = []
  for law, part in frame.groupby('law', sort=False):
    parts.append(
      f'{law}: worst error {part["error"].abs().max():.2%}, {int(part["inside"].sum())} of {len(part)} inside 95%'
    )
  return '; '.join(parts)


def _list(prefix: str, items: object) -> str:
  return prefix + (', '.join(map(str, items)) if items else 'none')


def _short(value: object) -> str:
  return 'unbounded' if value is None or not np.isfinite(value) else f'{value:.3g}'


def _share(value: object) -> str:
  return '?' if value is None else f'{value:.0%}'
