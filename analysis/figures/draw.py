"""Draws a Plot with matplotlib, for SVG and PNG files: the same bytes each time."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from analysis.figures import ticks
from analysis.figures.spec import NAMED, Axis, Mark, Panel, Plot

STYLE = {
  'font.family': 'DejaVu Sans',
  'font.size': 8,
  'axes.titlesize': 8.5,
  'axes.labelsize': 8,
  'xtick.labelsize': 7,
  'ytick.labelsize': 7,
  'legend.fontsize': 7,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.linewidth': 0.7,
  'axes.edgecolor': '#444444',
  'xtick.major.width': 0.6,
  'ytick.major.width': 0.6,
  'axes.grid': True,
  'grid.color': '#dddddd',
  'grid.linewidth': 0.5,
  'axes.axisbelow': True,
  'figure.facecolor': 'white',
  'svg.hashsalt': 'scaling',
  'svg.fonttype': 'path',
  'mathtext.fontset': 'dejavusans',
}
_MARKERS = {
  'circle': 'o', 'square': 's', 'triangle': '^', 'diamond': 'D', 'down': 'v', 'plus': 'P', 'cross': 'X', 'star': '*',
}  # fmt: skip
_DASHES = {
  'solid': '-',
  'dash': (0, (5, 2)),
  'dot': (0, (1, 1.4)),
  'dashdot': (0, (5, 1.5, 1, 1.5)),
  'longdash': (0, (9, 2)),
}
RAMP = (
  'viridis',
  0.0,
  0.86,
)  # its luminance rises steadily, so the order survives in grey; the last, yellow part is lost on white


def figure(plot: Plot) -> Any:
  """A matplotlib Figure of the plot."""
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  rows, columns = plot.shape
  width, height = plot.panel_size
  width = width or {1: 4.4, 2: 3.5, 3: 2.9}.get(columns, 2.3)
  height = height or {1: 3.2, 2: 2.7, 3: 2.5}.get(columns, 2.1)
  with matplotlib.rc_context(STYLE):
    fig = Figure(figsize=(width * columns, height * rows + (0.35 if plot.legend else 0)), layout='constrained')
    FigureCanvasAgg(fig)
    fig.get_layout_engine().set(w_pad=0.05, h_pad=0.05, wspace=0.03, hspace=0.05)
    entries: dict[str, Any] = {}
    for i, panel in enumerate(plot.panels):
      if panel.blank:
        continue
      ax = fig.add_subplot(rows, columns, i + 1)
      own = _panel(fig, ax, panel)
      if panel.legend and own:
        box = ax.legend(own.values(), own.keys(), title=panel.legend, loc='upper left', bbox_to_anchor=(1.0, 1.02), frameon=False,
                        handlelength=1.2, borderaxespad=0.2, labelspacing=0.45, alignment='left')  # fmt: skip
        box.get_title().set_fontsize(7)
        continue
      for label, handle in own.items():
        entries.setdefault(label, handle)
    if plot.legend and entries:
      # constrained layout keeps room for it; entries are read along rows, matplotlib fills columns
      room = width * columns
      across = (
        len(entries)
        if sum(0.48 + 0.055 * len(e) for e in entries) < room
        else int(room / (0.5 + 0.052 * max(map(len, entries))))
      )
      across = max(1, min(len(entries), across))
      order = [i for c in range(across) for i in range(c, len(entries), across)]
      labels, handles = list(entries), list(entries.values())
      fig.legend(
        [handles[i] for i in order], [labels[i] for i in order],
        loc='outside lower center', ncols=across, frameon=False, handlelength=2.2, columnspacing=1.4,
      )  # fmt: skip
    return fig


def save(plot: Plot, folder: Path, name: str, dpi: int = 200) -> list[Path]:
  """Writes NAME.svg and NAME.png, without dates or versions, so that equal plots give equal bytes."""
  import matplotlib

  fig = plot.draw()
  with matplotlib.rc_context(STYLE):
    fig.draw_without_rendering()  # the layout is found once, and kept for both files
    fig.set_layout_engine('none')
  paths = [folder / f'{name}.svg', folder / f'{name}.png']
  with matplotlib.rc_context(STYLE):
    fig.savefig(paths[0], metadata={'Date': None, 'Creator': None})
    fig.savefig(paths[1], dpi=dpi, metadata={'Software': None})
  return paths


def color(value: str | float) -> Any:
  """A colour by name, or by its place on the ramp."""
  if isinstance(value, str):
    return NAMED.get(value, value)
  from matplotlib import colormaps

  name, low, high = RAMP
  return colormaps[name](low + (high - low) * float(value))


def limits(panel: Panel, axis: str) -> tuple[float, float]:
  """The axis' limits: those given, else the data's with a margin."""
  spec: Axis = getattr(panel, axis)
  if spec.limits:
    return spec.limits
  if spec.scale == 'category':
    return -0.6, len(spec.categories) - 0.4
  found = []
  for mark in panel.marks:
    if mark.kind == 'text' or (mark.kind == 'rule' and len(getattr(mark, axis)) == 0):
      continue
    parts = [getattr(mark, axis)]
    if axis == 'y':
      parts += [p for p in (mark.high, mark.low, mark.base) if p is not None]
      if mark.kind == 'bars' and mark.base is None and spec.scale == 'linear':
        parts.append([0.0])
    for part in parts:
      values = np.asarray(part, float)
      found.append(values[np.isfinite(values) & ((values > 0) | (spec.scale != 'log'))])
  values = np.concatenate(found) if found else np.array([])
  if not len(values):
    return (1.0, 10.0) if spec.scale == 'log' else (0.0, 1.0)
  low, high = float(values.min()), float(values.max())
  if spec.scale == 'log':
    pad = max((high / low) ** 0.05, 1.02)
    return low / pad, high * pad
  pad = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
  return low - pad, high + pad


def _panel(fig: Any, ax: Any, panel: Panel) -> dict[str, Any]:
  handles = {}
  for z, mark in enumerate(panel.marks):
    handle = _mark(ax, mark, panel, 2 + z * 0.01)
    if mark.label and handle is not None:
      handles.setdefault(mark.label, handle)
  for name in ('x', 'y'):
    spec: Axis = getattr(panel, name)
    low, high = limits(panel, name)
    axis = getattr(ax, f'{name}axis')
    if spec.scale == 'log':
      getattr(ax, f'set_{name}scale')('log')
    getattr(ax, f'set_{name}lim')(low, high)
    if spec.scale == 'category':
      places, labels = list(range(len(spec.categories))), list(spec.categories)
      long = max(map(len, labels), default=0) * len(labels) > 45
      ax.grid(False, axis=name)
    else:
      box = ax.get_window_extent().transformed(fig.dpi_scale_trans.inverted())
      room = box.width / 0.55 if name == 'x' else box.height / 0.33
      target = max(3, min(8, round(room)))
      places = (ticks.log if spec.scale == 'log' else ticks.linear)(low, high, target)
      labels, long = ['' if spec.bare else ticks.text(p, spec.unit) for p in places], False
    axis.set_major_locator(_fixed(places))
    axis.set_major_formatter(_formatter(labels))
    axis.set_minor_locator(_fixed([]))
    if name == 'x' and long:
      ax.tick_params('x', rotation=35)
      for label in ax.get_xticklabels():
        label.set_ha('right')
        label.set_rotation_mode('anchor')
    getattr(ax, f'set_{name}label')(spec.label)
  if panel.title:
    ax.set_title(panel.title)
  if panel.note:
    right, top = 'right' in panel.note_at, 'upper' in panel.note_at
    ax.text(0.98 if right else 0.03, 0.97 if top else 0.03, panel.note, transform=ax.transAxes, ha='right' if right else 'left',
            va='top' if top else 'bottom', fontsize=7, color='#444444', linespacing=1.35,
            bbox={'boxstyle': 'square,pad=0.2', 'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.8})  # fmt: skip
  if panel.ramp:
    _colorbar(fig, ax, panel.ramp)
  return handles


def _mark(ax: Any, mark: Mark, panel: Panel, z: float) -> Any:
  x, y = np.asarray(mark.x, float), np.asarray(mark.y, float)
  shade = color(mark.color)
  if mark.kind == 'line':
    return ax.plot(x, y, color=shade, ls=_DASHES[mark.dash], lw=mark.width, alpha=mark.alpha, zorder=z)[0]
  if mark.kind == 'rule':
    draw, at = (ax.axvline, x[0]) if len(x) else (ax.axhline, y[0])
    return draw(at, color=shade, ls=_DASHES[mark.dash], lw=mark.width, alpha=mark.alpha, zorder=z)
  if mark.kind == 'band':
    return ax.fill_between(x, y, np.asarray(mark.high, float), color=shade, alpha=mark.alpha * 0.18, lw=0, zorder=z)
  if mark.kind == 'bars':
    base = np.zeros(len(x)) if mark.base is None else np.asarray(mark.base, float)
    bars = ax.bar(x, y - base, 0.62, bottom=base, color=shade, alpha=mark.alpha, zorder=z)
    return bars[0] if len(bars) else None
  if mark.kind == 'text':
    for a, b, words in zip(x, y, mark.hover or [], strict=True):
      side = {'start': 'left', 'middle': 'center', 'end': 'right'}[mark.anchor]
      ax.text(a, b, words, ha=side, va='center', fontsize=mark.size * 1.45, color=shade, zorder=z + 1)
    return None
  if mark.kind == 'cells':
    for a, b, value in zip(x, y, mark.values, strict=True):
      if math.isfinite(value):
        ax.add_patch(_rectangle(a, b, color(value), z))
    return None
  return _points(ax, mark, x, y, shade, z)


def _points(ax: Any, mark: Mark, x: np.ndarray, y: np.ndarray, shade: Any, z: float) -> Any:
  if mark.low is not None and mark.high is not None:
    spread = np.abs(np.stack([y - np.asarray(mark.low, float), np.asarray(mark.high, float) - y]))
    ax.errorbar(x, y, spread, fmt='none', ecolor=shade, elinewidth=0.8, capsize=1.8, zorder=z, alpha=mark.alpha)
  size = mark.size * (1.55 if mark.marker == 'star' else 1.2 if mark.marker in ('plus', 'cross') else 1.0)
  style = {'marker': _MARKERS[mark.marker], 'ms': size, 'ls': 'none', 'alpha': mark.alpha, 'zorder': z + 0.005}
  if mark.values is not None:
    shades = [color(v) if math.isfinite(v) else 'none' for v in mark.values]
    fill = _fill('k', mark.filled, size)
    ax.scatter(x, y, s=size**2, marker=_MARKERS[mark.marker], c=shades if mark.filled else 'white', linewidths=fill['mew'],
               edgecolors='white' if mark.filled else shades, alpha=mark.alpha, zorder=z + 0.005)  # fmt: skip
    return ax.plot([], [], **_fill(color(0.4), mark.filled, size), **style)[0]
  return ax.plot(x, y, **_fill(shade, mark.filled, size), **style)[0]


def _fill(shade: Any, filled: bool, size: float) -> dict[str, Any]:
  return (
    {'mfc': shade, 'mec': 'white', 'mew': 0.4 if size > 2.5 else 0.0}
    if filled
    else {'mfc': 'white', 'mec': shade, 'mew': 1.1}
  )


def _rectangle(x: float, y: float, fill: Any, z: float) -> Any:
  from matplotlib.patches import Rectangle

  return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor='white', lw=0.6, zorder=z)


def _colorbar(fig: Any, ax: Any, ramp: tuple[str, float, float, bool, str]) -> None:
  from matplotlib import cm, colormaps, colors

  label, low, high, log, unit = ramp
  name, start, end = RAMP
  cmap = colors.ListedColormap(colormaps[name](np.linspace(start, end, 256)))
  norm = (colors.LogNorm if log else colors.Normalize)(low, high if high > low else low * 1.01 + 1e-12)
  bar = fig.colorbar(cm.ScalarMappable(norm, cmap), ax=ax, pad=0.02, aspect=28)
  places = (ticks.log if log else ticks.linear)(low, high, 5)
  bar.set_ticks(places, labels=[ticks.text(p, unit) for p in places])
  bar.ax.minorticks_off()
  bar.outline.set_linewidth(0.4)
  bar.set_label(label)


def _fixed(places: list[float]) -> Any:
  from matplotlib.ticker import FixedLocator

  return FixedLocator(places)


def _formatter(labels: list[str]) -> Any:
  from matplotlib.ticker import FixedFormatter

  return FixedFormatter(labels)
