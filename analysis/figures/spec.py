"""What a figure is, apart from how it is drawn: panels with two axes and marks. Drawn by `draw` (files) and report.js (page)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

# Okabe and Ito's palette (jfly.uni-koeln.de/color), each with a marker and a dash, so that no series is told by colour alone.
NAMED = {
  'ink': '#1a1a1a',
  'muted': '#767676',
  'blue': '#0072B2',
  'orange': '#D55E00',
  'green': '#009E73',
  'amber': '#B87D00',
  'purple': '#AA4499',
  'sky': '#4AA3DF',
}
CYCLE = ('blue', 'orange', 'green', 'purple', 'amber', 'sky', 'ink', 'muted')
MARKERS = ('circle', 'square', 'triangle', 'diamond', 'down', 'plus', 'cross', 'star')
DASHES = ('solid', 'dash', 'dot', 'dashdot', 'longdash', 'solid', 'dash', 'dot')


@dataclasses.dataclass
class Axis:
  """label; scale 'log', 'linear' or 'category' (then `categories` names the positions 0, 1, ...).

  unit says how ticks and tooltips are written: 'count' (12.5M), 'flops' (10¹⁵), 'number', 'percent' (value 0.01 is 1%).
  """

  label: str
  scale: str = 'linear'
  unit: str = 'number'
  limits: tuple[float, float] | None = None
  categories: Sequence[str] = ()
  bare: bool = False  # ticks without numbers, where a neighbour has them


@dataclasses.dataclass
class Mark:
  """One thing drawn. `color` is a name in NAMED, or a number in [0, 1] on the sequential ramp (dark is low).

  kind 'line' | 'points' (low, high: error bars) | 'band' (y to high) | 'cells' (unit squares coloured by `values`)
  | 'bars' (from `base` or 0 to y) | 'text' (`hover` at x, y) | 'rule' (a line across the panel at x or y).
  hover holds one text per point; values one number in [0, 1] per point, which then colours it.
  """

  kind: str
  x: Sequence[float]
  y: Sequence[float]
  label: str = ''
  color: str | float = 'ink'
  marker: str = 'circle'
  dash: str = 'solid'
  filled: bool = True
  size: float = 4.5
  width: float = 1.3
  alpha: float = 1.0
  high: Sequence[float] | None = None
  low: Sequence[float] | None = None
  hover: Sequence[str] | None = None
  values: Sequence[float] | None = None
  anchor: str = 'middle'
  base: Sequence[float] | None = None


@dataclasses.dataclass
class Panel:
  """Axes and marks. `ramp` labels the colour bar as (label, low, high, log, unit) where marks are coloured by it."""

  x: Axis
  y: Axis
  marks: list[Mark]
  title: str = ''
  ramp: tuple[str, float, float, bool, str] | None = None
  note: str = ''
  note_at: str = 'upper left'
  legend: str = ''  # heading of a legend of its own; else its labels go to the figure's
  blank: bool = False  # an empty place in a grid of panels

  def add(self, kind: str, x: Any, y: Any, **options: Any) -> Mark:
    """Appends a mark."""
    options = {
      k: _values(v) if k in ('high', 'low', 'values', 'base') and v is not None else v for k, v in options.items()
    }
    mark = Mark(kind, _values(x), _values(y), **options)
    self.marks.append(mark)
    return mark


@dataclasses.dataclass
class Plot:
  """A figure: panels in rows of `columns`, a caption that says what is shown and how it was made."""

  title: str
  caption: str
  panels: list[Panel]
  columns: int = 0  # 0: all in one row
  panel_size: tuple[float, float] = (0.0, 0.0)  # inches; 0: chosen by the number of columns
  legend: bool = True
  name: str = ''

  @property
  def shape(self) -> tuple[int, int]:
    columns = self.columns or len(self.panels)
    return math.ceil(len(self.panels) / columns), columns

  def draw(self) -> Any:
    """The matplotlib Figure."""
    from analysis.figures import draw

    return draw.figure(self)

  def to_dict(self) -> dict[str, Any]:
    """Plain values for the page, six significant digits each."""
    return _plain(dataclasses.asdict(self) | {'columns': self.shape[1]})


def ramp_position(value: Any, low: float, high: float, log: bool = True) -> Any:
  """Where a value lies between low and high, in [0, 1]."""
  value, low, high = (np.log(np.asarray(v, float)) if log else np.asarray(v, float) for v in (value, low, high))
  return (
    np.clip((value - low) / np.maximum(high - low, 1e-12), 0, 1) if high > low else np.full(np.shape(value), 0.5) + 0.0
  )


def _values(values: Any) -> list:
  return np.atleast_1d(np.asarray(values, float)).tolist()


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items() if v is not None and v != '' and v is not False}
  if isinstance(value, list | tuple | np.ndarray):
    return [_plain(v) for v in value]
  if isinstance(value, bool | np.bool_):
    return bool(value)
  if isinstance(value, float | np.floating):
    return float(f'{value:.6g}') if math.isfinite(value) else None
  return int(value) if isinstance(value, np.integer) else value
