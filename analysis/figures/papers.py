"""Figures in the form of the papers that introduced them: Kaplan 1; Chinchilla 2, 3, 4; GPT-3 1.2, 2.2, 3.1."""

import numpy as np
import pandas as pd

from analysis import frontier
from analysis.context import Context, Unavailable
from analysis.figures import common, ticks
from analysis.figures.common import Scale
from analysis.figures.curves import compute_panel, pareto
from analysis.figures.fits import contour_panel, with_predictions
from analysis.figures.registry import figure
from analysis.figures.spec import Axis, Panel, Plot

PETAFLOP_DAY = 1e15 * 86400.0
_HOVER = (('params', 'count'), ('tokens', 'count'), ('loss', 'number'))


@figure('kaplan1', 'final losses over several sizes and token budgets; training curves for the first panel')
def kaplan1(context: Context) -> Plot:
  """Loss as a power law of compute, data and parameters, each when the other two do not limit it (Kaplan et al. 2020, fig. 1)."""
  rows = context.finals
  panels = []
  try:
    panel = compute_panel(context)
    best = _lower(pareto(context.need_curves().assign(flops=_flops(context.need_curves()))), 'flops')
    _power_line(panel, best, 'flops', 'C')
    panels.append(panel)
  except Unavailable:
    best = pareto(rows.assign(flops=_flops(rows)))
    panels.append(_best_panel(context, best, 'flops', common.flops_axis(), 'C'))
  for column, axis, symbol in (('tokens', common.tokens_axis(), 'D'), ('params', common.params_axis(context), 'N')):
    levels = rows[column].nunique()
    if levels < 3:
      raise Unavailable(f'at least 3 different values of {column}, and there are {levels}')
    best = rows.loc[rows.groupby(column)['loss'].idxmin()].sort_values(column)
    if levels > 12:  # not a grid: most values were met by few runs, so take the lower envelope
      best = best[best['loss'] < best['loss'].cummin().shift(fill_value=np.inf)]
    panels.append(_best_panel(context, best, column, axis, symbol))
  text = 'Straight lines are power laws without an irreducible part, fitted by least squares in logs to the best loss at each value (points).'
  return Plot('Loss as a power law of compute, data and parameters', text, panels)


def _best_panel(context: Context, best: pd.DataFrame, column: str, axis: Axis, symbol: str) -> Panel:
  panel = Panel(axis, common.loss_axis(context), [])
  for held, part in best.groupby('held_out'):
    panel.add('points', part[column], part['loss'], label='held out' if held else 'best run', filled=not held, color='blue',
              hover=common.hover(part, *_HOVER))  # fmt: skip
  _power_line(panel, best, column, symbol)
  for fit in [f for f in context.fits if f.law == f'power-{column}']:
    grid = np.geomspace(best[column].min() / 1.3, best[column].max() * 1.6, 30)
    line = fit.predict({column: grid})
    near = line < 1.2 * best['loss'].max()  # a law that its few points do not pin down may shoot up beyond them
    grid, line = grid[near], line[near]
    panel.add(
      'line', grid, line, label='power law with a floor', color='green', width=1.2, hover=[fit.formula] * len(grid)
    )
  return panel


def _power_line(panel: Panel, best: pd.DataFrame, column: str, symbol: str) -> None:
  """The line loss = (scale / x)^exponent through the rows that are not held out."""
  used = best[~best['held_out']]
  if len(used) < 2:
    return
  x = np.log(used[column].to_numpy(float))
  slope, level = np.polyfit(x - x.mean(), np.log(used['loss']), 1)
  grid = np.geomspace(best[column].min() / 1.3, best[column].max() * 1.6, 30)
  formula = f'L = ({symbol} / {ticks.text(float(np.exp(x.mean() - level / slope)), "flops", 2)})^{common.signed(slope)}'
  panel.add('line', grid, np.exp(level + slope * (np.log(grid) - x.mean())), label='power law', color='orange', dash='dash', width=1.5,
            hover=[formula] * len(grid))  # fmt: skip
  panel.note, panel.note_at = formula, 'upper right'


def _lower(best: pd.DataFrame, column: str) -> pd.DataFrame:
  """The part of an envelope beyond the first tenth of its log range, where warm-up no longer shapes it."""
  x = np.log(best[column])
  return best[x >= x.min() + 0.1 * (x.max() - x.min())]


def _flops(rows: pd.DataFrame) -> np.ndarray:
  return rows['flops'].to_numpy(float) if 'flops' in rows.columns else frontier.compute(rows)


@figure('chinchilla2', 'training curves of at least 4 sizes')
def chinchilla2(context: Context) -> Plot:
  """Approach 1: the envelope of all training curves, and the sizes and tokens on it (Hoffmann et al. 2022, fig. 2)."""
  found = context.approach('envelope')
  rows = context.need_curves()
  panel = Panel(common.flops_axis('Compute 6ND (FLOPs)'), common.loss_axis(context), [])
  scale = Scale(rows['params'], suffix=' params')
  panel.ramp = scale.ramp(context.params_label)
  for _, run in rows.groupby('run_id', sort=False):
    run = common.thin(run, 'tokens')
    panel.add('line', frontier.compute(run), run['loss'], color=scale.style(run['params'].iloc[0])['color'], width=0.9, alpha=0.8,
              hover=common.hover(run, *_HOVER))  # fmt: skip
  at = found.budgets
  panel.add('line', at['flops'], at['loss'], label='envelope', color='ink', width=1.6, dash='dash')
  text = 'Left: all training curves, coloured by size; the dashed line is the least loss at each compute, where neither the smallest nor the '
  text += (
    'largest size gives it. Right: sizes and tokens on it with power laws and 95% bands over resampled runs. '
    + ' '.join(found.messages)
  )
  return Plot('Approach 1: envelope of training curves', text, [panel, *_optimum_panels(context, found)])


@figure('chinchilla3', 'final losses at several sizes for each of several budgets, or a grid of sizes and tokens')
def chinchilla3(context: Context) -> Plot:
  """Approach 2: isoFLOP curves with their minima, and the sizes and tokens there (Hoffmann et al. 2022, fig. 3)."""
  found = context.approach('isoflop')
  panel = Panel(common.params_axis(context), common.loss_axis(context), [], legend='FLOPs')
  scale = Scale([c['flops'] for c in found.curves], 'flops')
  if not scale.few:
    panel.legend, panel.ramp = '', scale.ramp('Compute 6ND (FLOPs)')
  for curve in found.curves:
    style = scale.style(curve['flops'])
    texts = [f'{ticks.text(n, "count")} parameters\n{ticks.text(d, "count")} tokens\nloss {v:.4g}' for n, d, v in
             zip(curve['params'], curve['tokens'], curve['loss'], strict=True)]  # fmt: skip
    label = scale.label(curve['flops']) if scale.few else ''
    panel.add(
      'points', curve['params'], curve['loss'], label=label, size=4, hover=texts, filled=not curve['why'], **style
    )
    if curve['coefficients'] and not curve['why']:
      *coefficients, centre = curve['coefficients']
      n = np.linspace(np.log(curve['params'][0]), np.log(curve['params'][-1]), 40)
      panel.add('line', np.exp(n), np.exp(np.polyval(coefficients, n - centre)), color=style['color'], width=1.1)
      panel.add('points', [np.exp(curve['at'])], [np.exp(curve['least'])], marker='cross', color='orange', size=5.5,
                hover=[f'minimum: {ticks.text(float(np.exp(curve["at"])), "count")} parameters'])  # fmt: skip
  text = 'Left: loss against size at equal compute with robust parabolas in log size; crosses are minima, open points budgets without one. '
  text += 'Right: the minima with power laws and 95% bands. ' + (
    'Left out: ' + '; '.join(found.messages) + '.' if found.messages else ''
  )
  return Plot('Approach 2: isoFLOP curves', text, [panel, *_optimum_panels(context, found)])


def _optimum_panels(context: Context, found: frontier.Approach) -> list[Panel]:
  """Params and tokens of the optima against compute, with the power law and its band."""
  panels = []
  at = found.budgets
  low, high = at['flops'].min() / 2, max(at['flops'].max() * 4, float(frontier.compute(context.finals).max()))
  line = found.optimal(np.geomspace(low, high, 40))
  for column, axis, slope in (('params', common.params_axis(context), 'a'), ('tokens', common.tokens_axis(), 'b')):
    axis.label = f'Optimal {axis.label[0].lower()}{axis.label[1:]}'
    panel = Panel(common.flops_axis('Compute 6ND (FLOPs)'), axis, [])
    if np.isfinite(line[f'{column}_low']).all():
      panel.add(
        'band', line['flops'], line[f'{column}_low'], high=line[f'{column}_high'], color='blue', label='95% band'
      )
    panel.add('line', line['flops'], line[column], color='blue', label='power law', dash='dash', width=1.4)
    every = at.iloc[np.unique(np.linspace(0, len(at) - 1, min(len(at), 60)).round().astype(int))]
    texts = [
      f'{ticks.text(c, "flops")} FLOPs\n{ticks.text(v, "count")} {column}'
      for c, v in zip(every['flops'], every[column], strict=True)
    ]
    panel.add('points', every['flops'], every[column], color='ink', size=3.2, label='optima', hover=texts)
    panel.note = f'{slope} = {common.interval(found.estimate[slope], *found.interval(slope))}'
    panels.append(panel)
  return panels


@figure('chinchilla4', 'final losses and a fit of loss against params and tokens')
def chinchilla4(context: Context) -> Plot:
  """Approach 3: contours of the fitted law, and its slices at equal compute (Hoffmann et al. 2022, fig. 4)."""
  fit, rows = context.joint, with_predictions(context)
  left = contour_panel(context, fit, rows)
  right = Panel(common.params_axis(context), common.loss_axis(context), [], legend='FLOPs')
  c = frontier.compute(rows)
  budgets = np.geomspace(c.min() * 1.5, c.max(), 6)
  scale = Scale(budgets, 'flops')
  n = np.geomspace(rows['params'].min() / 2, rows['params'].max() * 2, 60)
  for budget in budgets:
    style = scale.style(budget)
    loss = fit.predict({'params': n, 'tokens': budget / (6 * n)})
    keep = loss < rows['loss'].max() * 1.15
    right.add(
      'line',
      n[keep],
      loss[keep],
      color=style['color'],
      width=1.2,
      hover=[f'{ticks.text(float(budget), "flops")} FLOPs'] * int(keep.sum()),
    )
    near = rows[np.abs(np.log(c / budget)) < np.log(1.35)]
    right.add(
      'points',
      near['params'],
      near['loss'],
      label=scale.label(budget),
      size=4,
      hover=common.hover(near, *_HOVER),
      **style,
    )
  best_n, best_d = frontier.optimal(fit, np.geomspace(budgets[0], budgets[-1], 30))
  inside = (best_n > n[0]) & (best_n < n[-1])
  right.add(
    'line',
    best_n[inside],
    fit.predict({'params': best_n[inside], 'tokens': best_d[inside]}),
    color='blue',
    dash='dash',
    width=1.6,
  )
  text = f'Fitted law: {fit.formula}. Left: contours of equal loss with runs (open: held out) and efficient frontier. '
  text += (
    'Right: slices of equal compute; points are the runs within a factor 1.35 of it; the dashed line joins the minima.'
  )
  return Plot('Approach 3: parametric fit', text, [left, right], panel_size=(4.3, 3.4))


@figure('gpt3-3.1', 'training curves')
def gpt3_loss(context: Context) -> Plot:
  """All training curves against compute with the power law of their envelope (Brown et al. 2020, fig. 3.1)."""
  rows = context.need_curves()
  rows = rows.assign(flops=_flops(rows) / PETAFLOP_DAY)
  panel = Panel(Axis('Compute (petaFLOP/s-days)', 'log', 'flops'), common.loss_axis(context), [])
  scale = Scale(rows['params'])
  panel.ramp = scale.ramp(context.params_label)
  for _, run in rows.groupby('run_id', sort=False):
    run = common.thin(run, 'flops')
    panel.add(
      'line',
      run['flops'],
      run['loss'],
      color=scale.style(run['params'].iloc[0])['color'],
      width=1.0,
      hover=common.hover(run, *_HOVER),
    )
  _power_line(panel, _lower(pareto(rows), 'flops'), 'flops', 'C')
  text = 'Curves are runs, coloured by size. The dashed line is a power law through the lowest losses at each compute.'
  return Plot('Smooth scaling of loss with compute', text, [panel], panel_size=(5.2, 3.5))


@figure('gpt3-2.2', 'final rows with flops')
def gpt3_compute(context: Context) -> Plot:
  """Training compute by model (Brown et al. 2020, fig. 2.2)."""
  rows = context.finals
  rows = rows.assign(flops=_flops(rows)).sort_values('flops')
  if len(rows) > 40:
    rows = rows.loc[rows.groupby('params')['flops'].idxmax()].sort_values('flops')
    rows = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 40)).round().astype(int))]
  names = rows['name'].astype(str).tolist()
  low = float(rows['flops'].min()) / 3
  panel = Panel(
    Axis('', 'category', categories=names),
    Axis('Training compute (FLOPs)', 'log', 'flops', limits=(low, float(rows['flops'].max()) * 1.5)),
    [],
  )
  panel.add(
    'bars',
    range(len(rows)),
    rows['flops'],
    color='blue',
    base=[low] * len(rows),
    hover=common.hover(rows, ('flops', 'flops'), ('loss', 'number')),
  )
  width = max(5.0, min(10.0, 0.28 * len(rows) + 1.5))
  return Plot(
    'Training compute by run',
    'FLOPs of each run, in the counting of the records.',
    [panel],
    panel_size=(width, 3.4),
    legend=False,
  )


@figure('gpt3-1.2', 'columns params, shots and accuracy')
def gpt3_shots(context: Context) -> Plot:
  """Accuracy against the number of examples in context, one line a size (Brown et al. 2020, fig. 1.2)."""
  context.need_columns('params', 'shots', 'accuracy')
  rows = context.frame[np.isfinite(context.frame['accuracy'])]
  by = ['params', 'task'] if 'task' in rows.columns else ['params']
  mean = rows.groupby(['params', 'shots'])['accuracy'].agg(['mean', 'std', 'count']).reset_index()
  scale = Scale(mean['params'], suffix=' params')
  shots = sorted(mean['shots'].unique())
  panel = Panel(
    Axis('Examples in context', 'category', categories=[f'{s:g}' for s in shots]),
    Axis('Accuracy', 'linear', 'percent'),
    [],
  )
  for size, part in mean.groupby('params'):
    style = scale.style(size)
    at = [shots.index(s) for s in part['shots']]
    texts = [
      f'{scale.label(size)}\n{s:g} examples\naccuracy {ticks.text(v, "percent")}'
      for s, v in zip(part['shots'], part['mean'], strict=True)
    ]
    panel.add('line', at, part['mean'], color=style['color'], width=1.4)
    panel.add('points', at, part['mean'], label=scale.label(size), hover=texts, **style)
  text = (
    'Mean accuracy'
    + (f' over {rows["task"].nunique()} tasks' if 'task' in by else '')
    + ' by the number of solved examples before the question.'
  )
  return Plot('Use of examples in context by size', text, [panel], panel_size=(4.8, 3.3))
