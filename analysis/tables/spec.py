"""What a table is, and how it is written: CSV at full precision, Markdown, LaTeX (booktabs) and the page rounded."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.context import Context
from analysis.figures import ticks
from scaling.errors import unknown


@dataclasses.dataclass
class Column:
  """key in the frame; heading; unit as in figures.ticks.text plus 'text', 'whole' and 'exact' (all digits); significant digits."""

  key: str
  heading: str
  unit: str = 'text'
  digits: int = 3

  def cell(self, value: Any) -> str:
    """A value as text."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)) or value is pd.NA:
      return '–'
    if isinstance(value, bool | np.bool_):
      return 'yes' if value else 'no'
    if self.unit == 'text' or isinstance(value, str):
      return str(value)
    if self.unit == 'whole':
      return f'{round(float(value)):,}' if math.isfinite(float(value)) else '∞'
    if self.unit == 'exact':
      return repr(float(value))
    if self.unit == 'fixed':
      return f'{float(value):.{self.digits}f}'.replace('-', '−')
    return ticks.text(float(value), self.unit, self.digits)

  @property
  def number(self) -> bool:
    return self.unit != 'text'


@dataclasses.dataclass
class Table:
  """title, caption (how it was made), rows, and the columns to show of them."""

  title: str
  caption: str
  frame: pd.DataFrame
  columns: list[Column]
  name: str = ''

  def cells(self) -> list[list[str]]:
    """Rows of text, rounded."""
    return [[c.cell(row[c.key]) for c in self.columns] for row in self.frame.to_dict('records')]

  def csv(self) -> str:
    """All shown columns at full precision, under their keys."""
    return self.frame[[c.key for c in self.columns]].to_csv(index=False, lineterminator='\n')

  def markdown(self) -> str:
    """A pipe table."""
    head = [c.heading for c in self.columns]
    rows = [[_pipe(v) for v in row] for row in self.cells()]
    widths = [max(len(h), 3, *(len(r[i]) for r in rows)) if rows else max(len(h), 3) for i, h in enumerate(head)]
    pad = lambda text, i: text.rjust(widths[i]) if self.columns[i].number else text.ljust(widths[i])  # noqa: E731
    rule = ['-' * (w - 1) + ':' if c.number else '-' * w for w, c in zip(widths, self.columns, strict=True)]
    lines = [head, rule, *rows]
    return '\n'.join('| ' + ' | '.join(pad(v, i) for i, v in enumerate(line)) + ' |' for line in lines) + '\n'

  def latex(self) -> str:
    """A floating table with booktabs' rules."""
    align = ''.join('r' if c.number else 'l' for c in self.columns)
    rows = [' & '.join(_tex(v) for v in row) + r' \\' for row in self.cells()]
    return '\n'.join(
      [
        r'\begin{table}[t]',
        r'  \centering\small',
        f'  \\caption{{{_tex(self.title)}. {_tex(self.caption)}}}',
        f'  \\label{{tab:{self.name}}}',
        f'  \\begin{{tabular}}{{{align}}}',
        r'    \toprule',
        '    ' + ' & '.join(_tex(c.heading) for c in self.columns) + r' \\',
        r'    \midrule',
        *('    ' + r for r in rows),
        r'    \bottomrule',
        r'  \end{tabular}',
        r'\end{table}',
        '',
      ]
    )

  def save(self, folder: Path) -> list[Path]:
    """Writes NAME.csv, NAME.md and NAME.tex."""
    out = []
    for suffix, text in (('csv', self.csv()), ('md', self.markdown()), ('tex', self.latex())):
      out.append(folder / f'{self.name}.{suffix}')
      out[-1].write_text(text, encoding='utf-8')
    return out


@dataclasses.dataclass(frozen=True)
class Entry:
  """name, what it needs in one line, the function that makes it; called with a context it gives the DataFrame."""

  name: str
  needs: str
  make: Callable[[Context], Table]
  default: bool = False

  @property
  def about(self) -> str:
    return (self.make.__doc__ or '').strip().split('\n')[0]

  def table(self, context: Context) -> Table:
    """The Table; raises Unavailable where the records do not allow it."""
    made = self.make(context)
    made.name = self.name
    return made

  def __call__(self, context: Context) -> pd.DataFrame:
    return self.table(context).frame


TABLES: dict[str, Entry] = {}


def table(name: str, needs: str, default: bool = False) -> Callable:
  """Registers a function as the table of that name."""

  def register(make: Callable[[Context], Table]) -> Callable[[Context], Table]:
    TABLES[name] = Entry(name, needs, make, default)
    return make

  return register


def get(name: str) -> Entry:
  """The table of that name; an unknown name is a UserError with the nearest."""
  if name not in TABLES:
    raise unknown('table', name, TABLES)
  return TABLES[name]


def pick(frame: pd.DataFrame, columns: list[Column], drop_empty: bool = True) -> list[Column]:
  """Those columns that the frame has, without the ones that are empty throughout."""
  return [c for c in columns if c.key in frame.columns and not (drop_empty and frame[c.key].isna().all())]


def _pipe(text: str) -> str:
  return text.replace('|', '\\|').replace('\n', ' ')


_TEX: Mapping[str, str] = {
  '\\': r'\textbackslash{}', '&': r'\&', '%': r'\%', '$': r'\$', '#': r'\#', '_': r'\_', '{': r'\{', '}': r'\}', '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}', '−': '$-$', '×': r'$\times$', '–': '--', '∞': r'$\infty$', '≥': r'$\ge$', '≤': r'$\le$', '→': r'$\to$',
}  # fmt: skip
_SUPERSCRIPTS = dict(zip('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789', strict=True))


def _tex(text: str) -> str:
  out, power = [], ''
  for c in [*text, '']:
    if c and c in _SUPERSCRIPTS:
      power += _SUPERSCRIPTS[c]
      continue
    if power:
      out.append(f'$^{{{power}}}$')
      power = ''
    out.append(_TEX.get(c, c))
  return ''.join(out)
