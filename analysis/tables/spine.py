"""The tables of each report: shapes, runs with baselines, fitted parameters, optima, predictions, approaches."""

import re

import numpy as np
import pandas as pd

from analysis import frontier
from analysis.context import Context, Unavailable
from analysis.figures import ticks
from analysis.figures.fits import with_predictions
from analysis.tables.spec import Column, Table, pick, table

_SHAPE = [
  Column('layers', 'Layers', 'whole'), Column('width', 'Width', 'whole'), Column('heads', 'Heads', 'whole'),
  Column('kv_heads', 'KV heads', 'whole'), Column('head_size', 'Head size', 'whole'), Column('mlp_width', 'MLP width', 'whole'),
  Column('vocab', 'Vocabulary', 'whole'), Column('params_embedding', 'Embedding', 'whole'), Column('params_position', 'Positions', 'whole'),
  Column('params_attention', 'Attention', 'whole'), Column('params_mlp', 'MLP', 'whole'), Column('params_norm', 'Norms', 'whole'),
  Column('params_head', 'Head', 'whole'), Column('params_non_embedding', 'Non-embedding', 'whole'), Column('params_total', 'Total', 'whole'),
  Column('params', 'Parameters', 'whole'),
]  # fmt: skip
_HYPER = [
  Column('batch_size', 'Batch (sequences)', 'whole'), Column('sequence_length', 'Sequence', 'whole'), Column('batch_tokens', 'Batch (tokens)', 'whole'),
  Column('learning_rate_peak', 'Peak LR', 'number', 3), Column('schedule', 'Schedule'), Column('weight_decay', 'Weight decay', 'number', 3),
  Column('tokens_least', 'Fewest tokens', 'count'), Column('tokens_most', 'Most tokens', 'count'), Column('runs', 'Runs', 'whole'),
]  # fmt: skip
_FOREIGN = {
  'optim.schedule': 'schedule', 'optim.weight_decay': 'weight_decay', 'optim.learning_rate': 'learning_rate_peak', 'model.vocab': 'vocab',
  'model.kv_heads': 'kv_heads', 'model.head_dim': 'head_size', 'model.mlp_width': 'mlp_width', 'model.width': 'width', 'depth': 'layers',
  'model.layers': 'layers', 'model.heads': 'heads', 'data.batch_size': 'batch_size', 'data.sequence_length': 'sequence_length',
}  # fmt: skip


def shape_rows(context: Context) -> pd.DataFrame:
  """One row per model shape and set of hyperparameters, with the range of token budgets it was trained for."""
  rows = context.finals
  rows = rows.rename(columns={k: v for k, v in _FOREIGN.items() if k in rows.columns and v not in rows.columns})
  if {'width', 'heads'} <= set(rows.columns):  # a head's size is written only where it is not width / heads
    size = rows['width'] / rows['heads']
    rows = rows.assign(head_size=pd.to_numeric(rows['head_size']).fillna(size) if 'head_size' in rows.columns else size)
  if 'batch_size' in rows.columns and 'sequence_length' in rows.columns:
    rows = rows.assign(batch_tokens=rows['batch_size'] * rows['sequence_length'])
  keys = [c.key for c in pick(rows, _SHAPE + _HYPER)]
  if 'params_total' in keys or 'params_non_embedding' in keys:
    keys = [k for k in keys if k != 'params']
  groups = rows.groupby(keys, dropna=False, sort=False)
  out = groups.agg(
    tokens_least=('tokens', 'min'), tokens_most=('tokens', 'max'), runs=('tokens', 'size'), _size=('params', 'first')
  ).reset_index()
  return out.sort_values(['_size', 'tokens_most']).reset_index(drop=True)


@table('shapes', 'final rows; shape and hyperparameter columns where there are any', default=True)
def shapes(context: Context) -> Table:
  """Model shapes with parameters by group and the hyperparameters they were trained with."""
  frame = shape_rows(context)
  caption = f'Parameters are counted in this study as: {context.params_label.lower()}. A row is one shape with one set of hyperparameters.'
  return Table('Model shapes and hyperparameters', caption, frame, pick(frame, _SHAPE + _HYPER))


@table('runs', 'rows of runs', default=True)
def runs(context: Context) -> Table:
  """All runs with their final losses, and the n-gram baselines."""
  frame = context.frame
  if 'run_id' in frame.columns:
    from analysis import table as tables

    last = tables.finals(frame) if not ('final' in frame.columns and not frame['final'].any()) else frame
    frame = (
      last
      if set(last['run_id']) == set(frame['run_id'])
      else tables.finals(frame.drop(columns='final', errors='ignore'))
    )
  order = [c for c in ('params', 'tokens') if c in frame.columns]
  frame = frame.sort_values(order).assign(kind='run')
  if 'params' in frame.columns and 'tokens' in frame.columns:
    frame['tokens_per_param'] = frame['tokens'] / frame['params']
  extra = [
    {'name': b['name'], 'loss': b['loss'], 'bits_per_byte': b.get('bits_per_byte'), 'params': b.get('parameters')}
    for b in context.baselines
  ]
  if extra:
    extra = pd.DataFrame(extra).assign(kind='baseline')
    frame = pd.concat(
      [frame.astype({c: object for c in ('held_out', 'diverged', 'final') if c in frame.columns}), extra],
      ignore_index=True,
    )
  columns = [
    Column('name', 'Run'), Column('run_id', 'Id'), Column('params', 'Parameters', 'count', 4), Column('tokens', 'Tokens', 'count', 4),
    Column('tokens_per_param', 'Tokens/param', 'number'), Column('flops', 'FLOPs', 'flops'), Column('learning_rate_peak', 'Peak LR', 'number', 3),
    Column('step', 'Steps', 'whole'), Column('loss', 'Loss', 'fixed', 4), Column('bits_per_byte', 'Bits/byte', 'fixed', 4),
    Column('seconds', 'Seconds', 'number'), Column('status', 'Status'), Column('held_out', 'Held out'),
  ]  # fmt: skip
  title = 'All runs' + (' and baselines' if context.baselines else '')
  return Table(title, f'Loss is the {context.loss_label.lower()} at the end of each run.', frame, pick(frame, columns))


def unidentified(fit) -> set[str]:
  """The parameters that the certificate calls unidentified, alone or as part of a flat direction."""
  text = '\n'.join(map(str, (fit.certificate or {}).get('unidentified') or []))
  return {name for name in fit.estimate if re.search(rf'(?<![\w]){re.escape(name)}(?=: unbounded| up\b| down\b)', text)}


@table('laws', 'a fit')
def laws_compared(context: Context) -> Table:
  """One row per fitted law: floor, exponents and the exponent of optimal size with 95% intervals, and how well it predicts."""
  if not context.fits:
    raise Unavailable('a fit: scaling fit DIR --law=chinchilla --out=DIR/fits.json')

  def cell(value: float, ends: list, mark: str = '') -> str:
    low, high = (ticks.text(float(e), 'number', 2) for e in ends)
    return f'{ticks.text(float(value), "number", 3)}{mark} ({low} to {high})'

  rows = []
  for one in context.fits:
    open_ = unidentified(one)
    row = {'law': one.law, 'formula': one.formula, 'points': one.n_points}
    if 'E' in one.estimate:
      row['floor'] = cell(one.estimate['E'], one.ci95['E'], '*' if 'E' in open_ else '')
    powers = [
      p.name for p in one.declared.parameters if p.name in one.estimate and re.match('(alpha|beta|gamma|eta)', p.name)
    ]
    row['exponents'] = '; '.join(
      f'{name} {cell(one.estimate[name], one.ci95[name], "*" if name in open_ else "")}' for name in powers
    )
    if 'a' in (one.frontier or {}):
      row['a'] = cell(one.frontier['a']['value'], one.frontier['a']['ci95'])
    if one in context.predictive:
      made = with_predictions(context, one)
      error = (made['predicted'] / made['loss'] - 1).abs()
      row['fitted'] = f'{error[~made["held_out"]].median():.2%}'
      row['held_out'] = f'{error[made["held_out"]].max():.2%}' if made['held_out'].any() else None
    rows.append(row)
  frame = pd.DataFrame(rows)
  columns = [
    Column('law', 'Law'), Column('points', 'Runs', 'whole'), Column('floor', 'Floor E'), Column('exponents', 'Exponents'),
    Column('a', 'a (params ~ compute^a)'), Column('fitted', 'Median error'), Column('held_out', 'Worst held-out error'),
  ]  # fmt: skip
  caption = '95% intervals in brackets; * not identified by these runs. Errors are relative, of runs fitted and of runs held out.'
  return Table('Fitted laws, compared', caption, frame, pick(frame, columns))


@table('fits', 'a fit', default=True)
def fits(context: Context) -> Table:
  """Fitted parameters with standard errors and 95% intervals."""
  if not context.fits:
    raise Unavailable('a fit: scaling fit DIR --law=chinchilla --out=DIR/fits.json')
  rows = []
  for one in context.fits:
    certificate, open_ = one.certificate or {}, unidentified(one)
    for name, value in one.estimate.items():
      low, high = one.ci95.get(name, (np.nan, np.nan))
      state = (
        'on its bound' if name in (certificate.get('at_bound') or []) else 'not identified' if name in open_ else ''
      )
      rows.append(
        {
          'law': one.law,
          'parameter': name,
          'estimate': value,
          'se': one.se.get(name),
          'low': low,
          'high': high,
          'state': state,
        }
      )
    for name, found in (one.frontier or {}).items():
      low, high = found.get('ci95', (np.nan, np.nan))
      label = {'a': 'a (params ~ compute^a)', 'b': 'b (tokens ~ compute^b)'}.get(name, name)
      rows.append(
        {
          'law': one.law,
          'parameter': label,
          'estimate': found.get('value'),
          'se': found.get('se'),
          'low': low,
          'high': high,
          'state': 'derived',
        }
      )
    for name, value in (('points', one.n_points), ('runs', one.n_runs), ('objective', one.objective)):
      rows.append({'law': one.law, 'parameter': name, 'estimate': value})
  frame = pd.DataFrame(rows)
  columns = [
    Column('law', 'Law'), Column('parameter', 'Parameter'), Column('estimate', 'Estimate', 'number', 5), Column('se', 'SE', 'number', 3),
    Column('low', '95% low', 'number', 4), Column('high', '95% high', 'number', 4), Column('state', 'Note'),
  ]  # fmt: skip
  how = '; '.join(
    f'{f.law}: {f.formula}, {f.settings.get("loss", "")}, intervals by {f.settings.get("interval", "")}'
    for f in context.fits
  )
  return Table('Fitted laws', how + '.', frame, pick(frame, columns))


def budgets_of(context: Context) -> np.ndarray:
  """Round budgets over the measured compute and two decades beyond."""
  c = frontier.compute(context.finals)
  first, last = np.floor(np.log10(c.min())), np.ceil(np.log10(c.max())) + 2
  return 10.0 ** np.arange(first, last + 0.5)


def optimum_rows(context: Context, budgets: np.ndarray) -> pd.DataFrame:
  """Params, tokens and loss at each budget by the fitted law, with intervals."""
  from analysis import predict

  return predict.optimum(context.joint, budgets)


@table('optima', 'a fit of loss against params and tokens', default=True)
def optima(context: Context) -> Table:
  """Compute-optimal parameters and tokens by budget, with 95% intervals."""
  frame = optimum_rows(context, budgets_of(context))
  most = frontier.compute(context.finals).max()
  frame['beyond'] = np.where(frame['flops'] > most * 1.0001, 'extrapolated', '')
  caption = f'From the fitted law {context.joint.law}, on compute = 6 x parameters x tokens. Extrapolated: beyond the largest run ({most:.2g} FLOPs).'
  return Table('Compute-optimal parameters and tokens', caption, frame, pick(frame, OPTIMUM_COLUMNS))


OPTIMUM_COLUMNS = [
  Column('flops', 'Compute (FLOPs)', 'flops'), Column('params', 'Parameters', 'count'), Column('params_low', '95% low', 'count'),
  Column('params_high', '95% high', 'count'), Column('tokens', 'Tokens', 'count'), Column('tokens_low', '95% low', 'count'),
  Column('tokens_high', '95% high', 'count'), Column('tokens_per_param', 'Tokens/param', 'number'), Column('loss', 'Loss', 'fixed', 4),
  Column('loss_low', '95% low', 'fixed', 4), Column('loss_high', '95% high', 'fixed', 4), Column('beyond', ''),
]  # fmt: skip


@table('predictions', 'held-out runs and a fit', default=True)
def predictions(context: Context) -> Table:
  """Held-out runs: loss predicted by each law, with its interval, against what was measured."""
  if context.held_out.empty:
    raise Unavailable('held-out runs: rows with held_out true')
  parts = []
  for one in context.predictive:
    rows = with_predictions(context, one)
    rows = rows[rows['held_out']]
    low, high = one.predict_interval({k: rows[k].to_numpy(float) for k in one.declared.inputs}, new_run=True)
    parts.append(
      rows[['name', 'params', 'tokens', 'loss', 'predicted']].assign(
        law=one.law,
        low=low,
        high=high,
        error=rows['predicted'] / rows['loss'] - 1,
        inside=(rows['loss'] >= low) & (rows['loss'] <= high),
      )
    )
  if not parts:
    raise Unavailable('a fit of loss whose inputs are columns of the rows')
  frame = pd.concat(parts, ignore_index=True)
  columns = [
    Column('law', 'Law'), Column('name', 'Run'), Column('params', 'Parameters', 'count'), Column('tokens', 'Tokens', 'count'),
    Column('loss', 'Measured', 'fixed', 4), Column('predicted', 'Predicted', 'fixed', 4), Column('low', '95% low', 'fixed', 4),
    Column('high', '95% high', 'fixed', 4), Column('error', 'Error', 'percent', 2), Column('inside', 'Inside'),
  ]  # fmt: skip
  return Table('Held-out runs: predicted and measured', 'Intervals are for a single new run.', frame, columns)


@table('approaches', 'rows over several sizes and budgets', default=True)
def approaches(context: Context) -> Table:
  """The three approaches to compute-optimal scaling side by side."""
  found, missing = context.approaches
  if not found:
    raise Unavailable('; '.join(missing))
  most = float(frontier.compute(context.finals).max())
  frame = frontier.disagreement(found, most)
  columns = [
    Column('approach', 'Approach'), Column('a', 'a', 'fixed', 3), Column('a_low', '95% low', 'fixed', 3), Column('a_high', '95% high', 'fixed', 3),
    Column('b', 'b', 'fixed', 3), Column('b_low', '95% low', 'fixed', 3), Column('b_high', '95% high', 'fixed', 3),
    Column('params', 'Parameters', 'count'), Column('tokens', 'Tokens', 'count'), Column('tokens_per_param', 'Tokens/param', 'number'),
    Column('params_ratio', 'Ratio', 'number'),
  ]  # fmt: skip
  text = f'params ~ compute^a and tokens ~ compute^b; optima at {most:.2g} FLOPs; ratio: parameters over those of the last approach.'
  notes = [m for one in found for m in one.messages] + missing
  if notes:
    text += ' Left out: ' + '; '.join(notes[:4]) + (f' and {len(notes) - 4} more.' if len(notes) > 4 else '.')
  return Table('Three approaches to compute-optimal scaling', text, frame, columns)
