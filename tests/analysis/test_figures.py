"""Each figure shows what its records say, and says what it lacks where they do not allow it."""

import json
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import synthetic_study

from analysis import context as contexts
from analysis import figures, laws
from analysis import fit as fitting
from analysis.figures import draw, ticks
from analysis.figures.spec import Axis, Panel, Plot
from scaling.errors import UserError

T = synthetic_study.TRUTH


@pytest.fixture(scope='module')
def context():
  frame = synthetic_study.rows(noise=0.002)
  used = frame.query('final and not held_out')
  return contexts.Context(
    {'counting': 'params_non_embedding', 'baselines': []},
    frame,
    [fitting.fit(used, 'chinchilla', probe=False, starts=8)],
  )


@pytest.fixture(scope='module')
def isoflop_context():
  """Exact isoFLOP cells around the optimum of the true law."""
  rows = []
  scale = (T['alpha'] * T['A'] / (T['beta'] * T['B'])) ** (1 / (T['alpha'] + T['beta']))
  for c in (1e12, 3e12, 1e13, 3e13):
    best = scale * (c / 6) ** (T['beta'] / (T['alpha'] + T['beta']))
    n = best * np.exp(np.linspace(-1.5, 1.5, 7))
    rows.append(pd.DataFrame({'params': n, 'tokens': c / 6 / n, 'loss': synthetic_study.loss(n, c / 6 / n)}))
  return contexts.Context({}, pd.concat(rows, ignore_index=True), [])


def marks(plot, kind, label=None):
  return [m for p in plot.panels for m in p.marks if m.kind == kind and (label is None or m.label == label)]


@pytest.mark.parametrize('name', [n for n in figures.FIGURES if n not in ('specification', 'backtest', 'profiles')])
def test_each_figure_is_drawn_or_says_what_it_needs(context, name):
  entry = figures.get(name)
  assert entry.about.endswith('.') and entry.needs
  try:
    plot = entry.plot(context)
  except contexts.Unavailable as error:
    assert 10 < len(str(error)) < 600 and '\n' not in str(error)
    return
  assert plot.title and plot.caption and plot.name == name
  figure = plot.draw()
  assert len(figure.axes) >= sum(not p.blank for p in plot.panels)
  for panel in plot.panels:
    low, high = draw.limits(panel, 'x')
    assert math.isfinite(low) and low < high
    for mark in panel.marks:
      assert mark.hover is None or len(mark.hover) >= max(len(mark.x), len(mark.y))
  text = json.dumps(plot.to_dict(), allow_nan=False)
  assert len(text) < 2_000_000


@pytest.mark.parametrize('name', list(figures.FIGURES))
def test_a_bare_table_is_told_what_is_missing(name):
  bare = contexts.Context({}, pd.DataFrame({'params': [1e6, 2e6], 'tokens': [1e7, 1e7], 'loss': [3.0, 2.9]}), [])
  if name in ('gpt3-2.2',):
    figures.get(name).plot(bare)
    return
  with pytest.raises(contexts.Unavailable):
    figures.get(name).plot(bare)


def test_unknown_names_suggest_the_nearest():
  with pytest.raises(UserError, match="did you mean 'chinchilla4'"):
    figures.get('chinchila4')


def test_curves_show_every_run_and_the_envelope_is_never_above(context):
  plot = figures.get('loss_curves').plot(context)
  assert len(plot.panels) == 3
  lines = [m for m in plot.panels[2].marks if m.kind == 'line' and not m.label]
  assert len(lines) == context.frame['run_id'].nunique()
  (envelope,) = marks(plot, 'line', 'envelope')
  assert (np.diff(envelope.y) < 0).all() and (np.diff(envelope.x) > 0).all()
  for line in lines:
    beyond = [y for x, y in zip(line.x, line.y, strict=True) if x >= envelope.x[-1]]
    assert not beyond or min(beyond) >= envelope.y[-1]


def test_baselines_are_lines_in_the_curves(context):
  study = {'baselines': [{'name': 'bigram', 'loss': 2.5}, {'name': 'unigram', 'loss': 3.1}]}
  plot = figures.get('loss_curves').plot(contexts.Context(study, context.frame, []))
  assert [m.y for m in plot.panels[0].marks if m.kind == 'rule'] == [[3.1], [2.5]]


def test_held_out_runs_are_open_points(context):
  for name in ('loss_vs_params_tokens', 'predicted_vs_measured', 'residuals'):
    panel = figures.get(name).plot(context).panels[0]
    opened = sum(len(m.x) for m in panel.marks if m.kind == 'points' and not m.filled)
    assert opened == len(context.held_out) == 2


def test_diverged_and_unfinished_rows_do_not_break_figures(context):
  frame = context.frame.copy()
  frame.loc[frame['run_id'] == frame['run_id'].iloc[0], 'diverged'] = True
  frame.loc[frame.index[40], 'loss'] = np.nan
  for name in ('loss_curves', 'residuals', 'contours'):
    figures.get(name).plot(contexts.Context(context.study, frame, context.fits)).draw()


def test_contours_are_at_their_levels(context):
  plot = figures.get('contours').plot(context)
  fit = context.joint
  for line in [m for m in plot.panels[0].marks if m.kind == 'line' and m.hover and m.hover[0].startswith('loss')]:
    c, n = np.array(line.x), np.array(line.y)
    level = float(line.hover[0].split()[1])
    np.testing.assert_allclose(fit.predict({'params': n, 'tokens': c / 6 / n}), level, rtol=2e-3)


def test_isoflop_figure_marks_the_true_minima(isoflop_context):
  plot = figures.get('chinchilla3').plot(isoflop_context)
  found = sorted(m.x[0] for m in plot.panels[0].marks if m.marker == 'cross')
  scale = (T['alpha'] * T['A'] / (T['beta'] * T['B'])) ** (1 / (T['alpha'] + T['beta']))
  true = [scale * (c / 6) ** (T['beta'] / (T['alpha'] + T['beta'])) for c in (1e12, 3e12, 1e13, 3e13)]
  np.testing.assert_allclose(found, true, rtol=0.05)


def test_profiles_are_least_at_the_estimate(context):
  plot = figures.get('profiles').plot(context)
  assert len(plot.panels) == 5
  for panel, (name, value) in zip(plot.panels, context.fits[0].estimate.items(), strict=True):
    (curve,) = [m for m in panel.marks if m.kind == 'line']
    assert panel.x.label == name
    least = curve.x[int(np.argmin(curve.y))]
    assert least == pytest.approx(value, rel=0.02)


def rate_rows(batches, edge=False):
  rows = []
  for n in (1e5, 4e5):
    for batch in batches:
      for k, rate in enumerate(np.geomspace(1e-4, 1e-2, 7)):
        best = 0 if edge else 3
        rows.append(
          {
            'params': n,
            'tokens': 1e7,
            'batch_size': batch,
            'learning_rate_peak': rate,
            'loss': 3 + 0.02 * (k - best) ** 2 + 0.01 * abs(math.log2(batch / 16)),
          }
        )
  return pd.DataFrame(rows)


@pytest.mark.parametrize('batches', [(16,), (4, 8, 16, 32, 64)])
@pytest.mark.parametrize('edge', [False, True])
def test_learning_rate_optima_are_interior_or_said_not_to_be(batches, edge):
  plot = figures.get('lr-batch').plot(contexts.Context({}, rate_rows(batches, edge), []))
  labels = {m.label for p in plot.panels for m in p.marks}
  assert ('best on the edge of the grid' in labels) == edge
  assert ('interior optimum' in labels) == (not edge)
  if not edge and len(batches) == 1:
    stars = [m.x[0] for m in plot.panels[0].marks if m.marker == 'star']
    np.testing.assert_allclose(stars, 1e-3, rtol=1e-6)
  plot.draw()


def test_width_and_depth_prescription(context):
  frame = synthetic_study.rows().query('final').assign(depth=lambda f: f['layers'] + 2)
  estimate = {'E': 1.1, 'A': 20.0, 'alpha': 0.6, 'B': 0.5, 'beta': 0.7, 'D': 190.0, 'delta': 0.37}
  law = laws.get('width-depth')
  fit = fitting.Fit(law.name, law.formula, {}, 24, 24, estimate, {}, {}, 0.0, {}, {}, 0.0)
  plot = figures.get('gemstones').plot(contexts.Context({}, frame, [fit]))
  size = plot.panels[0].marks[[m.label for m in plot.panels[0].marks].index('prescription')]
  assert size.y[-1] > size.y[0]


def test_task_grid_marks_the_target_and_its_error():
  random, rows = np.random.default_rng(0), []
  for n in (1e8, 2e8, 4e8, 8e8, 1.6e9):
    for d in (4e9, 1e10, 3e10):
      for part in (0.25, 0.5, 0.75, 1.0):
        bpb = 0.5 + 40 * n**-0.25 + 30 * (d * part) ** -0.2 + 0.002 * random.standard_normal()
        accuracy = 0.9 - 0.65 / (1 + np.exp(-6 * (bpb - 1.0)))
        rows.append(
          {
            'run_id': f'{n}-{d}',
            'params': n,
            'tokens': d * part,
            'loss': bpb,
            'held_out': n == 1.6e9 and d == 3e10,
            'toy__bpb': bpb,
            'toy__acc': accuracy,
          }
        )
  plot = figures.get('olmo-ladder').plot(contexts.Context({}, pd.DataFrame(rows), []))
  assert [p.title for p in plot.panels] == ['toy: step 1', 'toy: step 2', 'toy: chained']
  assert (
    plot.panels[0].note.startswith('target')
    and abs(float(plot.panels[2].note.split()[1].replace('−', '-').rstrip('%'))) < 3
  )


def test_shots_figure():
  rows = pd.DataFrame([{'params': n, 'tokens': 1e9, 'loss': 3.0, 'shots': k, 'accuracy': 0.2 + 0.05 * math.log2(n / 1e7) + 0.01 * k, 'task': t}
                       for n in (1e7, 1e8) for k in (0, 1, 4, 16) for t in 'ab'])  # fmt: skip
  plot = figures.get('gpt3-1.2').plot(contexts.Context({}, rows, []))
  assert list(plot.panels[0].x.categories) == ['0', '1', '4', '16'] and len(marks(plot, 'line')) == 2


@pytest.mark.slow
def test_specification_and_backtest(context):
  small = contexts.Context(
    {},
    context.frame,
    context.fits,
    {'specification': {'loss': ['log-huber 1e-3'], 'window': ['all'], 'points': ['final']}},
  )
  plot = figures.get('specification').plot(small)
  estimates = marks(plot, 'points', 'one fit')[0].y
  assert estimates == sorted(estimates) and len(estimates) >= 6
  assert marks(figures.get('backtest').plot(small), 'points')


# --- ticks and numbers


@hypothesis.given(st.floats(1e-9, 1e25), st.floats(1.0001, 1e12), st.integers(3, 9))
@hypothesis.settings(max_examples=300, deadline=None)
def test_ticks_are_inside_and_neither_none_nor_many(low, factor, target):
  for found in (ticks.log(low, low * factor, target), ticks.linear(low, low * factor, target)):
    slack = 1e-6 * low * factor  # of the axis' length, so nothing that an eye sees
    assert all(low - slack <= t <= low * factor + slack for t in found)
    assert len(found) <= 3 * target + 3
  assert len(ticks.linear(low, low * max(factor, 1.5), target)) >= 2


@pytest.mark.parametrize(
  ('value', 'unit', 'text'),
  [(12.5e6, 'count', '12.5M'), (1e15, 'flops', '10¹⁵'), (3.2e-9, 'number', '3.2×10⁻⁹'), (0.0153, 'percent', '1.53%'), (2.3456, 'number', '2.35'),
   (999_999, 'count', '1M'), (0.0, 'flops', '0'), (-0.5, 'number', '−0.5'), (math.inf, 'number', '∞'), (math.nan, 'number', '–')],
)  # fmt: skip
def test_numbers_as_people_read_them(value, unit, text):
  assert ticks.text(value, unit) == text


def test_equal_plots_give_equal_files(tmp_path):
  def make(folder):
    folder.mkdir()
    panel = Panel(Axis('x', 'log', 'count'), Axis('y'), [], ramp=('size', 1.0, 10.0, True, 'count'))
    panel.add('points', [1, 10, 100], [1, 2, 3], label='a', values=[0, 0.5, 1], low=[0.5, 1, 2], high=[2, 3, 4])
    panel.add('band', [1, 10, 100], [1, 1, 1], high=[2, 2, 2], label='b')
    return [p.read_bytes() for p in draw.save(Plot('t', 'c', [panel]), folder, 'x')]

  assert make(tmp_path / 'a') == make(tmp_path / 'b')
