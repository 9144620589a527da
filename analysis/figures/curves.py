"""Training curves against steps, tokens and compute, with the envelope of best losses and the n-gram baselines."""

import numpy as np
import pandas as pd

from analysis.context import Context, Unavailable
from analysis.figures import common
from analysis.figures.common import Scale
from analysis.figures.registry import figure
from analysis.figures.spec import Axis, Panel, Plot
from analysis.frontier import compute

_HOVER = (('step', 'count'), ('tokens', 'count'), ('flops', 'flops'), ('loss', 'number'))


@figure('loss_curves', 'training curves: several rows per run_id', default=True)
def loss_curves(context: Context) -> Plot:
  """Validation loss of all runs against steps, tokens and compute."""
  rows = context.need_curves()
  panels = []
  if 'step' in rows.columns:
    panels.append(Panel(Axis('Training steps', 'log', 'count'), common.loss_axis(context), []))
    _curves(context, panels[-1], rows[rows['step'] > 0], 'step')
  panels.append(Panel(common.tokens_axis(), common.loss_axis(context), []))
  _curves(context, panels[-1], rows, 'tokens')
  panels.append(compute_panel(context))
  text = 'Each line is one run; colour and marker give its size. The dashed line is the envelope: the lowest loss of any run at that compute or less.'
  if context.baselines:
    text += ' Horizontal lines are n-gram models fitted on the same training tokens.'
  return Plot('Loss against steps, tokens and compute', text, panels)


def compute_panel(context: Context) -> Panel:
  """All curves against compute, with the envelope."""
  rows = context.need_curves()
  if 'flops' not in rows.columns:
    rows = rows.assign(flops=compute(rows))
  panel = Panel(common.flops_axis(), common.loss_axis(context), [])
  _curves(context, panel, rows, 'flops')
  best = pareto(rows)
  panel.add(
    'line',
    best['flops'],
    best['loss'],
    label='envelope',
    color='ink',
    dash='dash',
    width=1.4,
    hover=common.hover(best, *_HOVER),
  )
  return panel


def pareto(rows: pd.DataFrame) -> pd.DataFrame:
  """Rows whose loss is below that of every row of less compute."""
  rows = rows.sort_values(['flops', 'loss'])
  return rows[rows['loss'] < rows['loss'].cummin().shift(fill_value=np.inf)]


def _curves(context: Context, panel: Panel, rows: pd.DataFrame, by: str) -> None:
  if rows.empty:
    raise Unavailable(f'rows with {by} above 0')
  scale = Scale(rows['params'], suffix=' params')
  if not scale.few:
    panel.ramp = scale.ramp(context.params_label)
  runs = rows.groupby('run_id', sort=False)
  most = max(8, min(60, 6000 // runs.ngroups))
  for _, run in sorted(runs, key=lambda item: (item[1]['params'].iloc[0], item[1]['tokens'].max())):
    size = run['params'].iloc[0]
    run = common.thin(run, by, most)
    style, label = scale.style(size), scale.label(size) if scale.few else ''
    panel.add(
      'line', run[by], run['loss'], color=style['color'], width=1.0, alpha=0.85, hover=common.hover(run, *_HOVER)
    )
    last = run.tail(1)
    panel.add('points', last[by], last['loss'], label=label, size=4, hover=common.hover(last, *_HOVER), **style)
  common.baseline_rules(context, panel)
