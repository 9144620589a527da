"""Parts that several figures share: axes, colours by size, hover texts, thinned curves."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.context import Context
from analysis.figures import ticks
from analysis.figures.spec import CYCLE, DASHES, MARKERS, Axis, Panel, ramp_position


def loss_axis(context: Context, label: str | None = None) -> Axis:
  return Axis(label or context.loss_label, 'log', 'number')


def params_axis(context: Context) -> Axis:
  return Axis(context.params_label, 'log', 'count')


def tokens_axis() -> Axis:
  return Axis('Training tokens', 'log', 'count')


def flops_axis(label: str = 'Training compute (FLOPs)') -> Axis:
  return Axis(label, 'log', 'flops')


class Scale:
  """Colour, marker and dash by a number (a size, a budget): the colour on the ramp, the shapes by rank."""

  def __init__(self, values: Any, unit: str = 'count', prefix: str = '', suffix: str = ''):
    self.levels = np.unique(np.asarray(values, float))
    self.unit, self.prefix, self.suffix = unit, prefix, suffix

  def style(self, value: float) -> dict[str, Any]:
    rank = int(np.searchsorted(self.levels, value))
    low, high = self.levels[0], self.levels[-1]
    place = float(ramp_position(value, low, high)) if high > low else 0.3
    return {'color': place, 'marker': MARKERS[rank % len(MARKERS)] if self.few else 'circle'}

  def label(self, value: float) -> str:
    return f'{self.prefix}{ticks.text(value, self.unit)}{self.suffix}'

  @property
  def few(self) -> bool:
    """Few enough levels for a legend; else a colour bar."""
    return len(self.levels) <= 9

  def ramp(self, label: str) -> tuple[str, float, float, bool, str]:
    return label, float(self.levels[0]), float(self.levels[-1]), True, self.unit


def cycle(i: int) -> dict[str, str]:
  """Colour, marker and dash of the i-th of some unordered series."""
  return {'color': CYCLE[i % len(CYCLE)], 'marker': MARKERS[i % len(MARKERS)], 'dash': DASHES[i % len(DASHES)]}


def hover(rows: pd.DataFrame, *columns: tuple[str, str]) -> list[str]:
  """One text per row: the run's name, then the given (column, unit)."""
  names = rows['name'] if 'name' in rows.columns else rows.index.astype(str)
  texts = [str(n) for n in names]
  for column, unit in columns:
    if column in rows.columns:
      texts = [f'{t}\n{column} {ticks.text(float(v), unit, 4)}' for t, v in zip(texts, rows[column], strict=True)]
  return texts


def thin(rows: pd.DataFrame, by: str, most: int = 60) -> pd.DataFrame:
  """At most `most` rows of a curve, evenly spaced in the log of `by`, first and last kept."""
  rows = rows.sort_values(by)
  if len(rows) <= most:
    return rows
  logs = np.log(rows[by].to_numpy(float))
  picks = np.searchsorted(logs, np.linspace(logs[0], logs[-1], most)).clip(0, len(rows) - 1)
  return rows.iloc[np.unique(np.concatenate([[0], picks, [len(rows) - 1]]))]


def thousands(value: float) -> str:
  return ticks.text(value, 'count')


def baseline_rules(context: Context, panel: Panel) -> None:
  """The n-gram baselines as horizontal lines."""
  for i, baseline in enumerate(context.baselines):
    dash = ('dot', 'dashdot', 'longdash', 'dash')[i % 4]
    panel.add('rule', [], [baseline['loss']], label=baseline['name'], color='muted', dash=dash, width=1.1,
              hover=[f'{baseline["name"]} baseline\nloss {baseline["loss"]:.4g}'])  # fmt: skip


def signed(value: float, digits: int = 3) -> str:
  return f'{value:.{digits}g}'.replace('-', '−')


def interval(value: float, low: float, high: float, unit: str = 'number', digits: int = 3) -> str:
  """value [low, high]."""
  if not (np.isfinite(low) or np.isfinite(high)):
    return ticks.text(value, unit, digits)
  return f'{ticks.text(value, unit, digits)} [{ticks.text(low, unit, digits)}, {ticks.text(high, unit, digits)}]'
