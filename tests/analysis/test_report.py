"""The report is the same bytes each time, says what is missing, and its page works in a browser without an error."""

import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
import synthetic_study

from analysis import context, report, verbs
from analysis.figures import FIGURES
from analysis.tables import TABLES
from scaling.errors import UserError

SPINE_FIGURES = {'loss_curves', 'loss_vs_params_tokens', 'contours', 'predicted_vs_measured', 'residuals'}
SPINE_TABLES = {'shapes', 'runs', 'fits', 'optima', 'predictions', 'approaches'}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  out = synthetic_study.write(tmp_path_factory.mktemp('study') / 'out', laws=('chinchilla',))
  report.build(out)
  return out


def test_everything_of_the_spine_is_there(study):
  assert {n for n, e in FIGURES.items() if e.default} >= SPINE_FIGURES
  assert {n for n, e in TABLES.items() if e.default} >= SPINE_TABLES
  for name in SPINE_FIGURES:
    assert (study / 'figures' / f'{name}.svg').stat().st_size > 5000
    assert (study / 'figures' / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
  for name in SPINE_TABLES:
    assert {(study / 'tables' / f'{name}.{kind}').exists() for kind in ('csv', 'md', 'tex')} == {True}


def test_repeating_gives_the_same_bytes(study, tmp_path):
  again = tmp_path / 'again'
  again.mkdir()
  for name in ('study.json', 'runs.parquet', 'fits.json'):
    shutil.copy(study / name, again / name)
  report.build(again)
  paths = sorted(p.relative_to(study) for p in study.rglob('*') if p.is_file())
  assert paths == sorted(p.relative_to(again) for p in again.rglob('*') if p.is_file())
  assert [p for p in paths if (study / p).read_bytes() != (again / p).read_bytes()] == []


def test_page_is_self_contained(study):
  page = (study / 'report.html').read_text(encoding='utf-8')
  assert not re.search(r'(src|href)="(?!data:|#)', page)
  assert not re.search(r'@import|url\((?!data:|#)', page)
  assert set(re.findall(r'https?://[^"\'\s)]+', page)) == {'http://www.w3.org/2000/svg'}
  assert not re.search(r'20\d\d-\d\d-\d\d', page), 'a date would make equal records give other bytes'


def test_text_of_the_user_cannot_break_the_page(tmp_path):
  frame = synthetic_study.rows(evaluations=3, sizes=synthetic_study.SIZES[:4])
  frame['name'] = '</script><script>alert(1)</script><b>"x"</b> & co'
  out = synthetic_study.write(tmp_path, frame, fit=False, title='<i>title</i></script>')
  page = report.build(out).read_text(encoding='utf-8')
  assert page.count('</script>') == 2 and '<i>title' not in page and '<b>"x"' not in page


def test_named_figures_and_tables(study, tmp_path):
  out = tmp_path / 'out'
  shutil.copytree(study, out, ignore=shutil.ignore_patterns('figures', 'tables'))
  page = report.build(out, figures=['chinchilla4']).read_text(encoding='utf-8')
  assert {p.name for p in (out / 'figures').iterdir()} == {'chinchilla4.svg', 'chinchilla4.png'}
  assert not (out / 'tables').exists()
  names = list(json.loads(_embedded(page))['plots'])
  assert set(names) == SPINE_FIGURES | {'chinchilla4'}, 'the page has what it always has, and the figure asked for'
  with pytest.raises(UserError, match="unknown figure 'residual': did you mean 'residuals'"):
    report.build(out, figures=['residual'])
  with pytest.raises(UserError, match="unknown table 'shape': did you mean 'shapes'"):
    report.build(out, tables=['shape'])


def test_what_cannot_be_made_is_said(tmp_path):
  frame = synthetic_study.rows(evaluations=1).query('final')
  out = synthetic_study.write(tmp_path, frame, fit=False)
  page = report.build(out).read_text(encoding='utf-8')
  assert 'Not in this report' in page and re.search(r'<code>loss_curves</code>: training curves', page)
  assert re.search(r'<code>contours</code>: a fit of loss', page)
  with pytest.raises(UserError, match=r'contours cannot be made from these records.*scaling fit DIR'):
    report.build(out, figures=['contours'])


def test_plain_table_of_foreign_runs(tmp_path):
  rows = synthetic_study.rows().query('final')[['params', 'tokens', 'loss']]
  rows.to_csv(tmp_path / 'runs.csv', index=False)
  text = verbs.report_verb(str(tmp_path / 'runs.csv'))
  assert (tmp_path / 'runs-report' / 'report.html').exists() and 'runs-report' in text


def test_analyse_fits_without_held_out_and_says_all(tmp_path):
  out = synthetic_study.write(
    tmp_path / 'out', synthetic_study.rows(evaluations=4), laws=('chinchilla', 'repetition'), fit=False
  )
  text = verbs.analyse(out, ['chinchilla', 'width-depth'], bootstrap=50)
  fits = json.loads((out / 'fits.json').read_text())
  assert [f['law'] for f in fits] == ['chinchilla'] and fits[0]['n_points'] == 22
  assert 'alpha' in text and 'Held out' in text and 'report.html' in text
  assert re.search(r"width-depth: not fitted: .*'?depth", text)
  assert np.isclose(fits[0]['estimate']['alpha'], synthetic_study.TRUTH['alpha'], atol=0.08)


def test_laws_of_one_variable_are_fitted_to_the_rows_that_nothing_else_limits(tmp_path):
  frame = synthetic_study.rows(evaluations=1, noise=0.0)
  frame['held_out'] = frame['tokens'] == max(synthetic_study.BUDGETS)
  out = synthetic_study.write(tmp_path / 'out', frame, fit=False)
  text = verbs.analyse(out, ['power-params', 'chinchilla'], bootstrap=0, build=False)
  fits = {f['law']: f for f in json.loads((out / 'fits.json').read_text())}
  assert fits['power-params']['n_points'] == 6 and fits['chinchilla']['n_points'] == 18
  assert 'fitted to 6 of 18 rows: the lowest loss at each params' in text
  # all six are at one token budget, so the law's params term is met exactly, and the tokens term is in the floor
  assert np.isclose(fits['power-params']['estimate']['alpha'], synthetic_study.TRUTH['alpha'], atol=1e-3)


def test_empty_and_broken_folders(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    verbs.report_verb(str(tmp_path / 'none'))
  (tmp_path / 'study.json').write_text('{"name": ')
  with pytest.raises(UserError, match=r'study\.json is not JSON'):
    context.load(tmp_path)


# Reports what a reader's pointer and keys do, into the page itself.
_DRIVE = """
addEventListener('load', () => setTimeout(() => {
  const out = {ready: document.documentElement.dataset.ready, errors: window.problems, hovers: {}, figures: 0};
  const at = (svg, x, y, kind, more = {}) => {
    const r = svg.getBoundingClientRect();
    const options = {clientX: r.left + x * r.width, clientY: r.top + y * r.height, bubbles: true, cancelable: true, ...more};
    svg.dispatchEvent(kind === 'wheel' ? new WheelEvent(kind, options) : new PointerEvent(kind, options));
  };
  const tip = document.getElementById('tip');
  for (const figure of document.querySelectorAll('[data-figure]')) {
    out.figures += figure.querySelectorAll('.panel svg').length > 0;
    const svg = figure.querySelector('.panel svg'), found = new Set();
    for (let x = 0.1; x < 0.98; x += 0.04) for (let y = 0.05; y < 0.9; y += 0.05) {
      at(svg, x, y, 'pointermove');
      if (!tip.hidden) found.add(tip.textContent);
    }
    out.hovers[figure.dataset.figure] = [...found].slice(0, 400);
  }
  const svg = document.querySelector('.panel svg'), state = () => [...svg.querySelectorAll('path')].map(p => p.getAttribute('d')).join();
  const before = state();
  at(svg, 0.5, 0.5, 'wheel', {deltaY: -100, ctrlKey: true});
  out.zoomed = state() !== before;
  svg.dispatchEvent(new MouseEvent('dblclick', {bubbles: true}));
  const whole = svg.querySelectorAll('path').length;
  out.reset = state() === before;
  at(svg, 0.5, 0.5, 'pointerdown', {buttons: 1});
  at(svg, 0.6, 0.6, 'pointermove', {buttons: 1});
  at(svg, 0.6, 0.6, 'pointerup');
  out.panned = state() !== before;
  document.querySelector('.legend button').click();
  out.toggled = svg.querySelectorAll('path').length < whole;
  const theme = document.documentElement.dataset.theme;
  document.getElementById('theme').click();
  out.themes = [theme, document.documentElement.dataset.theme];
  const table = document.querySelector('table[data-table="runs"]'), heads = [...table.querySelectorAll('th')];
  const loss = heads.findIndex(h => h.textContent === 'Loss');
  heads[loss].click();
  out.sorted = [...table.tBodies[0].rows].map(r => Number(r.cells[loss].dataset.v));
  out.nan = [...document.querySelectorAll('.panel svg *')].filter(e => [...e.attributes].some(a => /NaN|undefined|Infinity/.test(a.value))).length;
  const pre = document.body.appendChild(document.createElement('pre'));
  pre.id = 'results';
  pre.textContent = JSON.stringify(out);
}, 50));
"""


def test_page_in_a_browser(study, tmp_path):
  browser = next((b for b in ('chromium', 'chromium-browser', 'google-chrome') if shutil.which(b)), None)
  if browser is None:
    pytest.skip('no Chromium on this machine')
  page = (study / 'report.html').read_text(encoding='utf-8')
  watch = "<script>window.problems = []; addEventListener('error', e => window.problems.push(e.message));</script>"
  driven = page.replace('<head>', '<head>' + watch, 1).replace('</body>', f'<script>{_DRIVE}</script></body>', 1)
  (tmp_path / 'driven.html').write_text(driven, encoding='utf-8')
  done = subprocess.run(
    [browser, '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
     '--disable-component-update', '--disable-sync', f'--user-data-dir={tmp_path / "profile"}', '--enable-logging=stderr', '--window-size=1200,3000',
     '--virtual-time-budget=10000', '--dump-dom', (tmp_path / 'driven.html').as_uri()],
    capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  assert not [line for line in done.stderr.splitlines() if 'CONSOLE' in line], done.stderr[-3000:]
  found = re.search(r'<pre id="results">(.*?)</pre>', done.stdout, re.S)
  assert found, done.stderr[-2000:]
  out = json.loads(found[1].replace('&lt;', '<').replace('&gt;', '>').replace('&amp;', '&'))
  assert out['ready'] == 'yes' and out['errors'] == [] and out['nan'] == 0
  assert out['figures'] == len(json.loads(_embedded(page))['plots'])
  assert any(re.search(r'ladder-\d+k-\d+k.*loss \d', t) for t in out['hovers']['loss_curves']), (
    'a run is named with its values'
  )
  assert all(out['hovers'][name] for name in out['hovers']), 'each figure answers the pointer'
  assert out['zoomed'] and out['reset'] and out['panned'] and out['toggled']
  assert out['themes'][0] != out['themes'][1]
  assert out['sorted'] == sorted(out['sorted'])


def test_ticks_in_the_page_are_those_of_the_files(study):
  """report.js repeats ticks.py: run it where there is a JavaScript engine, on the same numbers."""
  node = shutil.which('node')
  if node is None:
    pytest.skip('no node on this machine')
  from analysis.figures import ticks

  source = pathlib.Path(report.__file__).with_name('report.js').read_text(encoding='utf-8')
  part = source[source.index('const SUPER') : source.index('// --- colours')]
  cases = [(lo, lo * f, n) for lo in (1e-3, 0.7, 1.9, 2e4, 3e17) for f in (1.3, 4, 30, 1e3, 1e9) for n in (4, 6)]
  values = [
    (v, u) for v in (0.0123, 1.5, 999.96, 1e6, 2.5e9, 3.21e21, 0.00001) for u in ('number', 'count', 'flops', 'percent')
  ]
  program = f'{part}; console.log(JSON.stringify([{json.dumps(cases)}.map(c => logTicks(...c)), {json.dumps(values)}.map(c => text(...c))]))'
  got = json.loads(subprocess.run([node, '-e', program], capture_output=True, text=True, check=True).stdout)
  for case, other in zip(cases, got[0], strict=True):
    np.testing.assert_allclose(ticks.log(*case), np.array(other, float), rtol=1e-9)
  assert [ticks.text(*v) for v in values] == got[1]


def _embedded(page: str) -> str:
  return re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
