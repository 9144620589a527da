"""Figures of studies with a further dial: step-by-step exponents, width and depth, over-training, tasks, learning rate and batch."""

import re
from typing import Any

import numpy as np
import pandas as pd

from analysis import fit as fitting
from analysis import frontier, table
from analysis.context import Context, Unavailable
from analysis.figures import common, ticks
from analysis.figures.common import Scale
from analysis.figures.registry import figure
from analysis.figures.spec import Axis, Panel, Plot, ramp_position
from analysis.isoflop import minimum
from scaling.errors import UserError

_HOVER = (('params', 'count'), ('tokens', 'count'), ('loss', 'number'))


@figure(
  'porian1',
  'final losses over several sizes and budgets; a column `variant` for steps of training, else steps of analysis',
)
def porian1(context: Context) -> Plot:
  """The exponent of compute-optimal size, step by step from one way of doing it to another (after Porian et al. 2024, fig. 1)."""
  steps, missing = _steps(context)
  if len(steps) < 2:
    raise Unavailable('at least two ways to find the optimum: ' + '; '.join(missing)[:300])
  names = [name for name, _ in steps]
  left = Panel(Axis('', 'category', categories=names), Axis('a (optimal params ~ compute^a)'), [])
  right = Panel(common.flops_axis('Compute (FLOPs)'), Axis('Optimal parameters', 'log', 'count'), [])
  for reference, label, dash in (
    (0.73, 'Kaplan et al. 2020: 0.73', 'dot'),
    (0.50, 'Hoffmann et al. 2022: 0.50', 'dash'),
  ):
    left.add('rule', [], [reference], color='muted', dash=dash, label=label)
  for i, (name, found) in enumerate(steps):
    style = common.cycle(i)
    low, high = found.interval('a')
    known = {'low': [low], 'high': [high]} if np.isfinite(low) else {}
    left.add('points', [i], [found.estimate['a']], color=style['color'], marker=style['marker'], size=5.5,
             hover=[f'{name}\na = {common.interval(found.estimate["a"], low, high)}'], **known)  # fmt: skip
    line = found.optimal(np.geomspace(found.budgets['flops'].min(), found.budgets['flops'].max() * 3, 20))
    right.add('line', line['flops'], line['params'], label=name, color=style['color'], dash=style['dash'], width=1.4,
              hover=[f'{name}\n{ticks.text(n, "count")} parameters' for n in line['params']])  # fmt: skip
  values = [found.estimate['a'] for _, found in steps] + [0.5, 0.73]
  left.y.limits = (min(values) - 0.12, max(values) + 0.12)
  text = 'Left: the exponent with its 95% interval at each step, with the two published values. Right: optimal size against compute.'
  return Plot('Exponent of compute-optimal size, step by step', text, [left, right], panel_size=(4.2, 3.4))


def _steps(context: Context) -> tuple[list[tuple[str, frontier.Approach]], list[str]]:
  """(name, approach) of each step that the rows allow, and why others are missing."""
  rows = context.clean[~context.clean['held_out']]
  tries = []
  if 'variant' in rows.columns:
    for name, part in rows.groupby('variant', sort=False):
      tries.append((str(name), lambda part=part: frontier.isoflop(table.finals(part))))
  else:
    counts = [c for c in ('params_non_embedding', 'params_total') if c in rows.columns]
    short = {'params_non_embedding': 'N non-emb.', 'params_total': 'N total'}
    for column in counts or ['params']:
      part = rows.assign(params=rows[column])
      name = short.get(column, 'N')
      flops = {'params_non_embedding': 'flops_kaplan', 'params_total': 'flops_chinchilla'}.get(column)
      flops = flops if flops in rows.columns else None
      tries.append((f'envelope, {name}', lambda part=part, flops=flops: frontier.envelope(part, flops)))
      tries.append((f'isoFLOP, {name}', lambda part=part: frontier.isoflop(table.finals(part))))
      tries.append((f'law, {name}', lambda part=part: _law_approach(context, part)))
  out, missing = [], []
  for name, make in tries:
    try:
      out.append((name, make()))
    except UserError as error:
      missing.append(f'{name}: {error}')
  return out, missing


def _law_approach(context: Context, rows: pd.DataFrame) -> frontier.Approach:
  rows = table.finals(rows)
  c = frontier.compute(rows)
  return frontier.parametric(
    fitting.fit(rows, 'chinchilla', starts=16, probe=False, drop=True), np.geomspace(c.min(), c.max(), 9)
  )


@figure('gemstones', 'a fit of the law width-depth or width-depth-params, and columns width, depth, params')
def gemstones(context: Context) -> Plot:
  """Prescriptions of size, width and depth by compute, and what other shapes cost (after McLeish et al. 2025)."""
  fit = context.fit_of('width-depth-params', 'width-depth')
  rows = context.finals
  depth = next((c for c in ('depth', 'layers') if c in rows.columns), None)
  if depth is None or 'width' not in rows.columns:
    raise Unavailable('columns width and depth (or layers) in the rows')
  w, d = rows['width'].to_numpy(float), rows[depth].to_numpy(float)
  block, table_ = _count_rule(rows['params'].to_numpy(float), w, d)
  widths = np.geomspace(w.min(), w.max() * 4, 80)
  depths = np.unique(np.round(np.geomspace(max(d.min(), 1), d.max() * 4, 60)))
  ww, dd = (v.ravel() for v in np.meshgrid(widths, depths))
  n = block * ww**2 * dd + table_ * ww
  c = frontier.compute(rows)
  budgets = np.geomspace(c.max() / 100, c.max() * 100, 13)
  draws = np.asarray(fit.samples, float) if fit.samples is not None and len(fit.samples) else None
  draws = None if draws is None else draws[np.linspace(0, len(draws) - 1, min(len(draws), 80)).round().astype(int)]
  theta = None if draws is None else {k: draws[:, i] for i, k in enumerate(fit.declared.names)}
  best, bands = [], []
  for budget in budgets:
    columns = {'width': ww, 'depth': dd, 'params': n, 'tokens': budget / (6 * n)}
    i = int(np.argmin(fit.predict({k: columns[k] for k in fit.declared.inputs})))
    best.append((n[i], ww[i], dd[i], ww[i] / dd[i]))
    if theta is not None:
      j = np.argmin(frontier.evaluate(fit, columns, theta), axis=1)
      bands.append(np.percentile(np.stack([n[j], ww[j], dd[j], ww[j] / dd[j]]), [2.5, 97.5], axis=1))
  best = np.array(best)
  panels = []
  labels = (context.params_label, 'Width', 'Depth (layers)', 'Width / depth')
  for k, label in enumerate(labels):
    panel = Panel(
      common.flops_axis('Compute 6ND (FLOPs)'), Axis(f'Optimal {label[0].lower()}{label[1:]}', 'log', 'count'), []
    )
    if bands:
      panel.add(
        'band', budgets, [b[0, k] for b in bands], high=[b[1, k] for b in bands], color='blue', label='95% band'
      )
    texts = [
      f'{ticks.text(a, "flops")} FLOPs\n{label.lower()} {ticks.text(v, "count")}'
      for a, v in zip(budgets, best[:, k], strict=True)
    ]
    panel.add('line', budgets, best[:, k], color='blue', width=1.5, label='prescription', hover=texts)
    panel.add('rule', [float(c.max())], [], color='muted', dash='dot', label='largest run')
    panels.append(panel)
  text = f'Least loss of the law {fit.law} over shapes at equal compute; parameters of a shape are {block:.3g} width² depth + {table_:.3g} width, '
  text += 'fitted to the runs. Widths and depths are searched up to four times the largest trained.'
  return Plot('Prescribed size, width and depth by compute', text, panels, columns=2, panel_size=(3.5, 2.4))


def _count_rule(params: np.ndarray, width: np.ndarray, depth: np.ndarray) -> tuple[float, float]:
  """Non-negative (k, e) of params = k width^2 depth + e width, in relative error."""
  from scipy.optimize import nnls

  found, _ = nnls(np.stack([width**2 * depth, width], axis=1) / params[:, None], np.ones(len(params)))
  return float(found[0]), float(found[1])


@figure('gadre1', 'a fit of over-training or chinchilla, and final losses at several tokens per parameter')
def gadre1(context: Context) -> Plot:
  """Reducible loss against compute at several token multipliers (Gadre et al. 2024, fig. 1)."""
  fit = context.fit_of('over-training', 'chinchilla', 'chinchilla-tied')
  floor = fit.estimate['E']
  rows = context.finals.assign(
    _c=frontier.compute(context.finals), _m=context.finals['tokens'] / context.finals['params']
  )
  rows = rows[rows['loss'] > floor]
  exact = np.unique(np.round(np.log2(rows['_m']), 1))
  levels = 2.0 ** (exact if len(exact) <= 8 else np.linspace(exact[0], exact[-1], 6))
  scale = Scale(levels, 'number')
  panel = Panel(
    common.flops_axis('Compute 6ND (FLOPs)'), Axis('Reducible loss (loss − E)', 'log'), [], legend='Tokens/param'
  )
  grid = np.geomspace(rows['_c'].min() / 2, rows['_c'].max() * 4, 40)
  for level in levels:
    n = np.sqrt(grid / 6 / level)
    line = fit.predict({'params': n, 'tokens': level * n}) - floor
    style = scale.style(level)
    panel.add(
      'line', grid, line, color=style['color'], width=1.2, hover=[f'{level:.3g} tokens per parameter'] * len(grid)
    )
    near = np.abs(np.log(rows['_m'] / level)) <= np.min(
      [np.log(1.3), *np.abs(np.log(np.delete(levels, np.argmin(np.abs(levels - level))) / level)) / 2]
    )
    for held, part in rows[near].groupby('held_out'):
      panel.add('points', part['_c'], part['loss'] - floor, filled=not held, label=scale.label(level) if not held else '',
                hover=common.hover(part, *_HOVER), **style)  # fmt: skip
  error = np.abs(fit.predict({k: rows[k].to_numpy(float) for k in fit.declared.inputs}) / rows['loss'] - 1)
  panel.note = f'E = {ticks.text(floor, "number", 4)}\nmedian error {error.median():.2%}'
  panel.note_at = 'lower left'
  text = f'Loss less the fitted irreducible loss E of {fit.law}; lines are the law at equal tokens per parameter, open points held-out runs.'
  return Plot('Reducible loss at several token multipliers', text, [panel], panel_size=(5.2, 3.5))


@figure(
  'olmo-ladder',
  'columns TASK__bpb and TASK__acc beside params and tokens, several evaluations or runs; held_out marks the target',
)
def olmo_ladder(context: Context) -> Plot:
  """Per task: loss by size and tokens, accuracy by loss, and the two chained to the target (Bhagia et al. 2024, fig. 1)."""
  tasks = [
    c.removesuffix('__bpb')
    for c in context.frame.columns
    if c.endswith('__bpb') and f'{c.removesuffix("__bpb")}__acc' in context.frame.columns
  ]
  tasks = context.options.get('tasks') or tasks[:8]
  if not tasks:
    raise Unavailable('columns TASK__bpb and TASK__acc in the rows')
  frame = context.frame.assign(
    held_out=context.frame['held_out'].fillna(False).astype(bool) if 'held_out' in context.frame.columns else False
  )
  frame = frame[frame['tokens'] > 0]
  panels = []
  for task in tasks:
    panels += _ladder_row(context, frame, task)
  text = 'Left: task loss of finished runs with E + A/N^alpha + B/D^beta. Middle: accuracy against task loss along training with a sigmoid. '
  text += 'Right: both chained, with 95% intervals from the draws of both fits. Open points are held-out targets; errors are relative.'
  return Plot('From size and tokens to task accuracy', text, panels, columns=3, panel_size=(2.9, 2.1))


def _ladder_row(context: Context, frame: pd.DataFrame, task: str) -> list[Panel]:
  rows = frame.assign(loss=frame[f'{task}__bpb'], accuracy=frame[f'{task}__acc']).dropna(subset=['loss', 'accuracy'])
  finals = table.finals(rows)
  train = finals[~finals['held_out']]
  try:
    first = fitting.fit(train, 'chinchilla', probe=False, drop=True, starts=32)
    path = rows[~rows['held_out']]
    path = (
      path[path['tokens'] >= 0.1 * path.groupby('run_id')['tokens'].transform('max')]
      if 'run_id' in path.columns
      else path
    )
    second = fitting.fit(
      path, 'task-accuracy', loss='squared', probe=False, drop=True, accept=('duplicates', 'units'), starts=32
    )
  except UserError as error:
    raise Unavailable(f'rows that the two steps can be fitted to for {task} ({error})') from None
  scale = Scale(finals['params'])
  xs = {k: finals[k].to_numpy(float) for k in ('params', 'tokens')}
  loss = first.predict(xs)
  chained = second.predict({'loss': loss})
  low, high = _chain(first, second, xs)
  title = re.sub(r'_(test|val|validation)?_?\d+shot$', '', task).replace('_', ' ')
  tokens = np.geomspace(finals['tokens'].min() / 1.3, finals['tokens'].max() * 1.3, 30)
  one = Panel(common.tokens_axis(), Axis('Task loss (bits/byte)', 'log'), [], title=f'{title}: step 1')
  for size in scale.levels:
    one.add(
      'line',
      tokens,
      first.predict({'params': np.full(30, size), 'tokens': tokens}),
      color=scale.style(size)['color'],
      width=0.9,
    )
  two = Panel(Axis('Task loss (bits/byte)'), Axis('Accuracy', 'linear', 'percent'), [], title=f'{title}: step 2')
  shown = path.iloc[np.unique(np.linspace(0, len(path) - 1, min(len(path), 250)).round().astype(int))]
  two.add('points', shown['loss'], shown['accuracy'], values=ramp_position(shown['params'], scale.levels[0], scale.levels[-1]), size=2.2, alpha=0.7,
          hover=common.hover(shown, ('params', 'count'), ('loss', 'number'), ('accuracy', 'percent')))  # fmt: skip
  grid = np.linspace(rows['loss'].min() * 0.97, rows['loss'].max() * 1.02, 60)
  two.add('line', grid, second.predict({'loss': grid}), color='ink', width=1.3)
  three = Panel(common.tokens_axis(), Axis('Accuracy', 'linear', 'percent'), [], title=f'{title}: chained')
  for size in scale.levels:
    line = second.predict({'loss': first.predict({'params': np.full(30, size), 'tokens': tokens})})
    three.add('line', tokens, line, color=scale.style(size)['color'], width=0.9)
  for k, (_, row) in sorted(enumerate(finals.iterrows()), key=lambda item: item[1][1]['params']):
    held = bool(row['held_out'])
    style = scale.style(row['params']) | ({'color': 'orange', 'marker': 'star', 'size': 7} if held else {'size': 3.4})
    name = str(row.get('name', row.get('run_id', '')))
    one.add('points', [row['tokens']], [row['loss']], filled=not held, label='' if held else scale.label(row['params']),
            hover=[f'{name}\nloss {row["loss"]:.4f}, predicted {loss[k]:.4f}'], **style)  # fmt: skip
    three.add(
      'points',
      [row['tokens']],
      [row['accuracy']],
      filled=not held,
      hover=[f'{name}\naccuracy {row["accuracy"]:.4f}, predicted {chained[k]:.4f}'],
      **style,
    )
    if held:
      one.add('points', [row['tokens']], [loss[k]], color='ink', marker='cross', size=4, label='predicted')
      two.add('points', [row['loss']], [row['accuracy']], filled=False, **style)
      three.add(
        'points', [row['tokens']], [chained[k]], low=[low[k]], high=[high[k]], color='ink', marker='cross', size=4
      )
      one.note = f'target {loss[k] / row["loss"] - 1:+.1%}'.replace('-', '−')
      three.note = f'target {chained[k] / row["accuracy"] - 1:+.1%}'.replace('-', '−')
      one.note_at = 'upper right'
  return [one, two, three]


def _chain(first: Any, second: Any, columns: dict[str, np.ndarray]) -> np.ndarray:
  """95% band [2, n] of accuracy with the draws of both fits paired."""
  count = min(len(first.samples), len(second.samples), 500)
  loss = first.predict_samples(columns)[:count]
  theta = dict(zip(second.declared.names, np.asarray(second.samples, float)[:count].T, strict=True))
  values = frontier.evaluate_each(second, {'loss': loss}, theta)
  return np.nanpercentile(values, [2.5, 97.5], axis=0)


@figure(
  'lr-batch', 'a column of learning rates (learning_rate_peak) with several values per size; batch_size for heat maps'
)
def lr_batch(context: Context) -> Plot:
  """Loss over learning rate and batch size for each size and budget, with interior optima marked."""
  rows = context.finals
  rate = next(
    (c for c in ('learning_rate_peak', 'learning_rate', 'lr', 'optim.learning_rate') if c in rows.columns), None
  )
  if rate is None:
    raise Unavailable('a column learning_rate_peak in the rows')
  two = 'batch_size' in rows.columns and rows.groupby(['params', 'tokens'])['batch_size'].nunique().max() > 1
  cells = [(key, part) for key, part in rows.groupby(['params', 'tokens']) if part[rate].nunique() >= 3]
  if not cells:
    raise Unavailable(f'at least 3 values of {rate} for some size and budget')
  if not two:
    return _rate_curves(context, cells, rate)
  cells = [(key, part) for key, part in cells if part['batch_size'].nunique() >= 2][:12]
  panels = []
  for (params, tokens), part in cells:
    mean = part.groupby([rate, 'batch_size'])['loss'].mean().reset_index()
    rates, batches = sorted(mean[rate].unique()), sorted(mean['batch_size'].unique())
    title = f'{ticks.text(params, "count")} params, {ticks.text(tokens, "count")} tokens'
    low, high = float(mean['loss'].min()), float(mean['loss'].quantile(0.9))
    panel = Panel(Axis('Learning rate', 'category', categories=[f'{r:.2g}' for r in rates]),
                  Axis('Batch (sequences)', 'category', categories=[f'{b:g}' for b in batches]), [], title=title,
                  ramp=('Loss', low, max(high, low * 1.001), True, 'number'))  # fmt: skip
    x, y = mean[rate].map(rates.index).to_numpy(), mean['batch_size'].map(batches.index).to_numpy()
    texts = [
      f'learning rate {r:.3g}\nbatch {b:g}\nloss {v:.4f}'
      for r, b, v in zip(mean[rate], mean['batch_size'], mean['loss'], strict=True)
    ]
    panel.add('cells', x, y, values=ramp_position(mean['loss'], low, high), hover=texts)
    best = int(mean['loss'].argmin())
    inside = 0 < x[best] < len(rates) - 1 and 0 < y[best] < len(batches) - 1
    panel.add('points', [x[best]], [y[best]], marker='star' if inside else 'cross', color='orange', size=8,
              label='interior optimum' if inside else 'best on the edge of the grid')  # fmt: skip
    panels.append(panel)
  text = 'Colour is the final loss (those above the 90th percentile share the last colour). A best cell on the edge says only that the grid is too small.'
  return Plot('Loss by learning rate and batch size', text, panels, columns=min(3, len(panels)), panel_size=(3.3, 2.6))


def _rate_curves(context: Context, cells: list, rate: str) -> Plot:
  """Loss against learning rate with a parabola in its log, one line a cell, and the optima against size."""
  rows = context.finals
  left = Panel(Axis('Peak learning rate', 'log', 'number'), common.loss_axis(context), [])
  right = Panel(common.params_axis(context), Axis('Best learning rate', 'log', 'number'), [])
  scale = Scale(rows['params'], suffix=' params')
  for (params, tokens), part in cells:
    mean = part.groupby(rate)['loss'].mean()
    style = scale.style(params)
    texts = [
      f'{ticks.text(params, "count")} params, {ticks.text(tokens, "count")} tokens\nlearning rate {r:.3g}\nloss {v:.4f}'
      for r, v in mean.items()
    ]
    left.add('line', mean.index, mean, color=style['color'], width=1.0)
    left.add('points', mean.index, mean, label=scale.label(params) if scale.few else '', hover=texts, size=3.6, **style)
    found = minimum(np.log(mean.index.to_numpy(float)), np.log(mean.to_numpy(float)), 'parabola')
    best = float(np.exp(found['at'])) if not found['why'] else float(mean.idxmin())
    why = found['why'].replace('smallest size', 'smallest rate').replace('largest size', 'largest rate')
    left.add('points', [best], [float(mean.min()) if found['why'] else float(np.exp(found['least']))], marker='cross' if why else 'star', color='orange',
             size=6.5, label='best on the edge of the grid' if why else 'interior optimum', hover=[why or f'optimum {best:.3g}'])  # fmt: skip
    right.add(
      'points',
      [params],
      [best],
      filled=not why,
      hover=[f'{ticks.text(tokens, "count")} tokens\nlearning rate {best:.3g}\n{why}'.strip()],
      **style,
    )
  text = 'Left: final loss by peak learning rate; stars are minima of a parabola in its log, crosses best cells on the edge of the grid. '
  text += 'Right: best rate by size (open: on the edge, so only a bound).'
  return Plot('Loss by learning rate', text, [left, right])
