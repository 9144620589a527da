"""Figures, tables and one self-contained HTML page from a study's output folder; equal records give equal bytes."""

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis import context as contexts
from analysis import figures as figure_registry
from analysis import tables as table_registry
from analysis.context import Context, Unavailable
from analysis.figures import draw
from analysis.figures.spec import NAMED, Plot
from analysis.tables import Table
from scaling.errors import UserError

MOST_ROWS = 500  # of a table on the page; its CSV file has all
_DARK = {
  'ink': '#ececec', 'muted': '#9a9da1', 'blue': '#62b4f0', 'orange': '#f28a4b', 'green': '#3fc79c', 'amber': '#e0ae3c', 'purple': '#d98ad6',
  'sky': '#8fd0f7', 'page': '#16181b', 'grid': '#2c3035', 'words': '#b4b7bb',
}  # fmt: skip
_LIGHT = NAMED | {'page': '#ffffff', 'grid': '#e2e2e2', 'words': '#4d4d4d'}


def build(
  out_dir: str | Path,
  figures: Sequence[str] | None = None,
  tables: Sequence[str] | None = None,
  context: Context | None = None,
) -> Path:
  """Writes OUT/figures (SVG, PNG), OUT/tables (CSV, Markdown, LaTeX) and OUT/report.html, and gives the page's path.

  figures, tables: names. None: those that the study asks for, and of the default ones all that its records allow. Where names
  are given, the files of these alone are written; the page has them beside what it always has. Names given here must be
  possible: an unknown name, or one whose records are missing, is a UserError that says why.
  """
  out = Path(out_dir)
  context = context or contexts.load(out)
  plots, missing = _make(
    figures, context.study.get('figures'), figure_registry.FIGURES, figure_registry.get, lambda e: e.plot(context)
  )
  made, missing_tables = _make(
    tables, context.study.get('tables'), table_registry.TABLES, table_registry.get, lambda e: e.table(context)
  )
  some = figures is not None or tables is not None
  for plot in [p for p in plots if not some or p.name in (figures or ())]:
    (out / 'figures').mkdir(parents=True, exist_ok=True)
    draw.save(plot, out / 'figures', plot.name)
  for table in [t for t in made if not some or t.name in (tables or ())]:
    (out / 'tables').mkdir(parents=True, exist_ok=True)
    table.save(out / 'tables')
  path = out / 'report.html'
  path.write_text(page(context, plots, made, missing + missing_tables), encoding='utf-8')
  return path


def _make(
  asked: Sequence[str] | None, study: Sequence[str] | None, known: dict, get: Any, make: Any
) -> tuple[list, list[tuple[str, str]]]:
  """Things made, those asked for by the caller first, and (name, reason) of those that could not be."""
  names = list(dict.fromkeys([*(asked or []), *(study or []), *(n for n, e in known.items() if e.default)]))
  done, missing = [], []
  for entry in [get(name) for name in names]:
    try:
      done.append(make(entry))
    except Unavailable as error:
      if entry.name in (asked or ()):
        raise UserError(
          f'{entry.name} cannot be made from these records: it needs {entry.needs}; missing: {error}'
        ) from None
      missing.append((entry.name, str(error)))
  return done, missing


def page(context: Context, plots: Iterable[Plot], tables: Iterable[Table], missing: Iterable[tuple[str, str]]) -> str:
  """The page's HTML: figures as JSON that report.js draws, tables as they are, no other file and no network."""
  plots, tables, missing = list(plots), list(tables), list(missing)
  study = context.study
  title = study.get('title') or study.get('name') or 'Scaling report'
  data = {
    'plots': {p.name: _plot(p) for p in plots},
    'tables': {t.name: {'csv': t.csv(), 'md': t.markdown(), 'tex': t.latex()} for t in tables},
    'colors': {'light': _LIGHT, 'dark': _DARK},
    'ramp': {'light': _ramp(0.0, 0.86), 'dark': _ramp(0.25, 1.0)},
  }
  # "<" as an escape keeps any text in the data from ending the script element
  embedded = json.dumps(data, separators=(',', ':'), sort_keys=True, ensure_ascii=False, allow_nan=False).replace(
    '<', '\\u003c'
  )
  sections = ''.join(_figure(p) for p in plots)
  rest = ''.join(f'<li><code>{_e(n)}</code>: {_e(why)}</li>' for n, why in missing)
  rest = f'<h2 id="missing">Not in this report</h2><ul class="missing">{rest}</ul>' if rest else ''
  links = ''.join(
    f'<a href="#{kind}-{x.name}">{_e(x.title)}</a>' for kind, xs in (('figure', plots), ('table', tables)) for x in xs
  )
  script, style = (Path(__file__).with_name(f'report.{kind}').read_text(encoding='utf-8') for kind in ('js', 'css'))
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{_e(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<div class="head"><h1>{_e(title)}</h1><div class="tools"><button id="theme" type="button">light / dark</button></div></div>
<p class="lead">{_e(study.get('description', ''))}</p>
<nav aria-label="contents">{links}</nav>
</header>
<main>
{_summary(context)}
<noscript><p>The figures are drawn by the script of this page; without it, see the SVG files in the folder <code>figures</code> beside it.</p></noscript>
{'<h2 id="figures">Figures</h2>' if plots else ''}
{sections}
{'<h2 id="tables">Tables</h2>' if tables else ''}
{''.join(_table(t) for t in tables)}
{rest}
</main>
<div id="tip" role="status" hidden></div>
<script type="application/json" id="data">{embedded}</script>
<script>
{script}</script>
</body>
</html>
"""


def summary(context: Context) -> str:
  """The fits in a few lines each, and the held-out predictions: what `scaling run` prints at its end."""
  parts = [_fit_lines(one) for one in context.fits]
  lines = held_out_lines(context)
  return '\n\n'.join([*parts, *(['\n'.join(lines)] if lines else [])])


def _fit_lines(fit: Any) -> str:
  try:
    return fit.summary()
  except TypeError:  # a certificate read from a file has null where a number was infinite
    lines = [f'  {k:<10} {v:.6g}  95% [{fit.ci95[k][0]:.6g}, {fit.ci95[k][1]:.6g}]' for k, v in fit.estimate.items()]
    return '\n'.join(
      [
        f'{fit.law}: {fit.formula}',
        f'{fit.n_points} points of {fit.n_runs} runs; objective {fit.objective:.9g}',
        *lines,
      ]
    )


def held_out_lines(context: Context) -> list[str]:
  """One line per held-out run and law: predicted, interval, measured, error."""
  try:
    rows = table_registry.get('predictions').table(context).frame
  except UserError:
    return []
  lines = ['Held out, predicted and measured:']
  for r in rows.to_dict('records'):
    verdict = 'inside' if r['inside'] else 'outside'
    lines.append(
      f'  {r["law"]:<12} {r["name"]}: predicted {r["predicted"]:.4f} [{r["low"]:.4f}, {r["high"]:.4f}], '
      f'measured {r["loss"]:.4f}: {r["error"]:+.2%}, {verdict} the 95% interval'
    )
  return lines


def _summary(context: Context) -> str:
  text = summary(context)
  return f'<div class="summary" id="summary"><pre>{_e(text)}</pre></div>' if text else ''


def _plot(plot: Plot) -> dict[str, Any]:
  for panel in plot.panels:
    if not panel.blank:
      panel.x.limits, panel.y.limits = draw.limits(panel, 'x'), draw.limits(panel, 'y')
  out = plot.to_dict()
  for panel in out['panels']:
    for mark in panel['marks']:
      mark.setdefault('filled', False)
  return out


def _ramp(low: float, high: float) -> list[str]:
  from matplotlib import colormaps, colors

  return [colors.to_hex(c) for c in colormaps[draw.RAMP[0]](np.linspace(low, high, 17))]


def _figure(plot: Plot) -> str:
  return f"""<section class="item" id="figure-{plot.name}" data-figure="{plot.name}">
<div class="head"><h3>{_e(plot.title)}</h3><div class="tools"></div></div>
<div class="panels"></div><div class="below"></div>
<p class="caption">{_e(plot.caption)}</p>
</section>
"""


def _table(table: Table) -> str:
  head = ''.join(f'<th{" class=n" if c.number else ""} scope="col">{_e(c.heading)}</th>' for c in table.columns)
  rows = []
  for cells, row in zip(table.cells()[:MOST_ROWS], table.frame.head(MOST_ROWS).to_dict('records'), strict=True):
    rows.append(
      '<tr>' + ''.join(_cell(c, row[c.key], text) for c, text in zip(table.columns, cells, strict=True)) + '</tr>'
    )
  more = f' The first {MOST_ROWS} of {len(table.frame)} rows; the CSV has all.' if len(table.frame) > MOST_ROWS else ''
  buttons = ''.join(f'<button type="button" data-save="{table.name}.{kind}">{label}</button>' for kind, label in
                    (('csv', 'CSV'), ('md', 'Markdown'), ('tex', 'LaTeX')))  # fmt: skip
  return f"""<section class="item" id="table-{table.name}">
<div class="head"><h3>{_e(table.title)}</h3><div class="tools">{buttons}</div></div>
<div class="scroll"><table data-table="{table.name}"><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>
<p class="caption">{_e(table.caption + more)}</p>
</section>
"""


def _cell(column: Any, value: Any, text: str) -> str:
  kind = ' class=n' if column.number else ' class=wrap' if len(text) > 60 else ''
  if column.number and isinstance(value, int | float | np.number) and not isinstance(value, bool):
    kind += f' data-v="{float(value):.8g}"'
  return f'<td{kind}>{_e(text)}</td>'


def _e(text: Any) -> str:
  return html.escape(str(text), quote=True)
