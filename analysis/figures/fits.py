"""What a fitted law says against what was measured: lines through N and D, contours, predictions, residuals."""

import numpy as np
import pandas as pd

from analysis import frontier
from analysis.context import Context, Unavailable
from analysis.figures import common
from analysis.figures.common import Scale
from analysis.figures.registry import figure
from analysis.figures.spec import Axis, Panel, Plot, ramp_position

_HOVER = (('params', 'count'), ('tokens', 'count'), ('loss', 'number'), ('predicted', 'number'))


@figure('loss_vs_params_tokens', 'final losses and a fit of loss against params and tokens', default=True)
def loss_vs_params_tokens(context: Context) -> Plot:
  """Final loss against parameters and against tokens, with the fitted law."""
  fit, rows = context.joint, with_predictions(context)
  panels = []
  for column, other, axis in (
    ('params', 'tokens', common.params_axis(context)),
    ('tokens', 'params', common.tokens_axis()),
  ):
    panel = Panel(axis, common.loss_axis(context), [])
    scale = Scale(rows[other])
    if scale.few:
      panel.legend = 'Tokens' if other == 'tokens' else 'Parameters'
    else:
      panel.ramp = scale.ramp('Training tokens' if other == 'tokens' else context.params_label)
    low, high = rows[column].min(), rows[column].max()
    grid = np.geomspace(low / 1.25, high * 1.25, 60)
    for value in _few(scale.levels):
      line = fit.predict({column: grid, other: np.full_like(grid, value)})
      panel.add(
        'line',
        grid,
        line,
        color=scale.style(value)['color'],
        width=1.0,
        hover=[f'{fit.law}, {other} {scale.label(value)}'] * len(grid),
      )
    for value in scale.levels:
      part = rows[rows[other] == value]
      for held, points in part.groupby('held_out'):
        label = scale.label(value) if scale.few and not held else ''
        panel.add(
          'points',
          points[column],
          points['loss'],
          label=label,
          filled=not held,
          hover=common.hover(points, *_HOVER),
          **scale.style(value),
        )
    panels.append(panel)
  text = f'Points are finished runs (open: held out from the fit), lines the fitted law {fit.formula}.'
  return Plot('Loss against parameters and against tokens', text, panels)


@figure('contours', 'final losses and a fit of loss against params and tokens', default=True)
def contours(context: Context) -> Plot:
  """IsoLoss contours of the fitted law with the efficient frontier."""
  fit, rows = context.joint, with_predictions(context)
  return Plot(
    'IsoLoss contours and efficient frontier',
    f'Contours of equal loss of the fitted law ({fit.law}) over compute (6 x parameters x tokens) and parameters. The dashed line is the '
    'efficient frontier, the least loss at each compute, with its 95% band. Points are runs, coloured by measured loss (open: held out).',
    [contour_panel(context, fit, rows)],
    panel_size=(5.2, 3.7),
  )


def contour_panel(context: Context, fit, rows: pd.DataFrame) -> Panel:
  """Contours over (compute, params) with frontier, band and runs."""
  from contourpy import contour_generator

  c = frontier.compute(rows)
  log_c = np.linspace(np.log(c.min()) - 1.2, np.log(c.max()) + 1.8, 90)
  log_n = np.linspace(np.log(rows['params'].min()) - 0.9, np.log(rows['params'].max()) + 0.9, 90)
  tokens = np.exp(log_c[None, :] - log_n[:, None]) / frontier.FLOPS_PER_PARAM_TOKEN
  surface = fit.predict(
    {'params': np.broadcast_to(np.exp(log_n)[:, None], tokens.shape).ravel(), 'tokens': tokens.ravel()}
  ).reshape(tokens.shape)
  low, high = float(rows['loss'].min()), float(rows['loss'].max())
  least = float(surface.min())
  levels = np.geomspace(max(low * 0.97, least * 1.002), high * 1.03, 11)
  limits = {'x': (np.exp(log_c[0]), np.exp(log_c[-1])), 'y': (np.exp(log_n[0]), np.exp(log_n[-1]))}
  x, y = common.flops_axis('Compute 6ND (FLOPs)'), common.params_axis(context)
  x.limits, y.limits = limits['x'], limits['y']
  panel = Panel(x, y, [], ramp=(context.loss_label, float(levels[0]), float(levels[-1]), True, 'number'))
  generator = contour_generator(log_c, log_n, np.log(surface))
  for level in levels:
    for line in generator.lines(np.log(level)):
      place = float(ramp_position(level, levels[0], levels[-1]))
      panel.add(
        'line', np.exp(line[:, 0]), np.exp(line[:, 1]), color=place, width=1.0, hover=[f'loss {level:.4g}'] * len(line)
      )
  budgets = np.exp(log_c)
  n, _ = frontier.optimal(fit, budgets)
  draws = frontier.samples(fit)
  if draws:
    bands = np.nanpercentile(frontier.optimal(fit, budgets, draws)[0], [2.5, 97.5], axis=0)
    panel.add(
      'band',
      budgets,
      np.clip(bands[0], *limits['y']),
      high=np.clip(bands[1], *limits['y']),
      color='blue',
      label='95% band',
    )
  inside = (n > limits['y'][0]) & (n < limits['y'][1])
  panel.add('line', budgets[inside], n[inside], label='efficient frontier', color='blue', dash='dash', width=1.8,
            hover=[f'optimum {a:.3g} parameters' for a in n[inside]])  # fmt: skip
  for held, part in rows.groupby('held_out'):
    panel.add('points', frontier.compute(part), part['params'], label='held out' if held else 'runs', filled=not held,
              marker='square' if held else 'circle', values=ramp_position(part['loss'], levels[0], levels[-1]), size=5,
              hover=common.hover(part, *_HOVER))  # fmt: skip
  return panel


@figure('predicted_vs_measured', 'final losses and a fit', default=True)
def predicted_vs_measured(context: Context) -> Plot:
  """Predicted against measured loss, with held-out runs marked."""
  panels = []
  if not context.predictive:
    raise Unavailable('a fit of loss: scaling fit DIR --law=chinchilla --out=DIR/fits.json')
  for fit in context.predictive[:3]:
    rows = with_predictions(context, fit)
    panel = Panel(Axis('Measured loss', 'log'), Axis('Predicted loss', 'log'), [], title=fit.law)
    low = float(min(rows['loss'].min(), rows['predicted'].min())) / 1.02
    high = float(max(rows['loss'].max(), rows['predicted'].max())) * 1.02
    drawn = []
    for held, part in rows.groupby('held_out'):
      extra = {}
      if held:
        bounds = fit.predict_interval({k: part[k].to_numpy(float) for k in fit.declared.inputs}, new_run=True)
        extra = {'low': bounds[0], 'high': bounds[1]}
        seen = [b for b in np.ravel(bounds) if np.isfinite(b) and 0.5 * low < b < 2 * high]
        low, high = min([low, *(b / 1.01 for b in seen)]), max([high, *(b * 1.01 for b in seen)])
      drawn.append((part, held, extra))
    panel.x.limits = panel.y.limits = (low, high)
    panel.add('line', [low, high], [low, high], color='muted', width=0.9, label='equal')
    for part, held, extra in drawn:
      panel.add('points', part['loss'], part['predicted'], label='held out (95% interval)' if held else 'fitted', filled=not held,
                color='orange' if held else 'blue', marker='square' if held else 'circle', hover=common.hover(part, *_HOVER), **extra)  # fmt: skip
    error = np.abs(rows['predicted'] / rows['loss'] - 1)
    note = f'fitted: median {error[~rows["held_out"]].median():.2%}'
    if rows['held_out'].any():
      note += f'\nheld out: worst {error[rows["held_out"]].max():.2%}'
    panel.note = note
    panels.append(panel)
  text = 'Points on the line are predicted exactly. Held-out runs were not used in the fit; their bars are 95% intervals for a single new run.'
  size = (4.0, 3.6) if len(panels) == 1 else (3.1, 2.9)
  return Plot('Predicted against measured loss', text, panels, panel_size=size)


@figure('residuals', 'final losses and a fit of loss against params and tokens', default=True)
def residuals(context: Context) -> Plot:
  """Relative residuals of the fit against parameters, tokens, tokens per parameter and compute."""
  fit, rows = context.joint, with_predictions(context)
  rows = rows.assign(
    residual=rows['loss'] / rows['predicted'] - 1, ratio=rows['tokens'] / rows['params'], compute=frontier.compute(rows)
  )
  reach = 1.15 * max(float(np.abs(rows['residual']).max()), 1e-4)
  panels = []
  axes = {
    'params': common.params_axis(context),
    'tokens': common.tokens_axis(),
    'ratio': Axis('Tokens per parameter', 'log', 'number'),
    'compute': common.flops_axis('Compute 6ND (FLOPs)'),
  }
  for column, axis in axes.items():
    panel = Panel(axis, Axis('Measured / predicted − 1', 'linear', 'percent', limits=(-reach, reach)), [])
    panel.add('rule', [], [0.0], color='muted', width=0.9)
    spread = float(rows['residual'][~rows['held_out']].std())
    for side in (-2 * spread, 2 * spread):
      panel.add('rule', [], [side], color='muted', dash='dot', width=0.9, label='two standard deviations')
    for held, part in rows.groupby('held_out'):
      texts = [f'{t}\nresidual {r:+.2%}' for t, r in zip(common.hover(part, *_HOVER), part['residual'], strict=True)]
      panel.add('points', part[column], part['residual'], label='held out' if held else 'fitted', filled=not held,
                color='orange' if held else 'blue', marker='square' if held else 'circle', hover=texts)  # fmt: skip
    panels.append(panel)
  text = (
    f'Measured loss over the loss predicted by {fit.law}, less one. A trend in any panel is something the law misses.'
  )
  return Plot('Residuals of the fit', text, panels, columns=2, panel_size=(3.5, 2.2))


def with_predictions(context: Context, fit=None) -> pd.DataFrame:
  """Final rows with a column `predicted`."""
  fit = fit or context.joint
  rows = context.finals
  missing = [c for c in fit.declared.inputs if c not in rows.columns]
  if missing:
    raise Unavailable(f'column {", ".join(missing)} in the rows, which the law {fit.law} takes')
  if rows.empty:
    raise Unavailable('finished runs')
  return rows.assign(predicted=fit.predict({k: rows[k].to_numpy(float) for k in fit.declared.inputs}))


def _few(levels: np.ndarray, most: int = 9) -> np.ndarray:
  return levels if len(levels) <= most else levels[np.unique(np.linspace(0, len(levels) - 1, most).round().astype(int))]
