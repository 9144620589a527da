"""How far to trust a fit: residuals by law, D/N with its band, corner plot, profiles, specification curve, rolling backtest."""

import numpy as np

from analysis import fit as fitting
from analysis import frontier
from analysis.context import Context, Unavailable
from analysis.figures import common, ticks
from analysis.figures.fits import with_predictions
from analysis.figures.registry import figure
from analysis.figures.spec import Axis, Panel, Plot
from scaling.errors import UserError


@figure('besiroglu-residuals', 'final losses and a fit of loss')
def besiroglu_residuals(context: Context) -> Plot:
  """Distribution of the residuals of each fitted law (after Besiroglu et al. 2024)."""
  found = context.predictive
  if not found:
    raise Unavailable('a fit of loss whose inputs are columns of the rows')
  panel = Panel(
    Axis('Measured / predicted − 1', 'linear', 'percent'), Axis('', 'category', categories=[f.law for f in found]), []
  )
  panel.add('rule', [0.0], [], color='muted', width=0.9)
  for i, fit in enumerate(found):
    rows = with_predictions(context, fit)
    rows = rows.assign(residual=rows['loss'] / rows['predicted'] - 1)
    used = rows['residual'][~rows['held_out']].to_numpy()
    grid = np.linspace(used.min() - 0.3 * np.ptp(used) - 1e-9, used.max() + 0.3 * np.ptp(used) + 1e-9, 120)
    width = max(1.06 * used.std() * len(used) ** -0.2, 1e-12)  # Silverman's rule
    density = np.exp(-0.5 * ((grid[:, None] - used) / width) ** 2).sum(1)
    density *= 0.36 / density.max()
    style = common.cycle(i)
    panel.add('band', grid, i - density, high=i + density, color=style['color'], alpha=1.5)
    random = np.random.default_rng(0)
    for held, part in rows.groupby('held_out'):
      texts = [f'{n}\nresidual {r:+.3%}' for n, r in zip(part['name'], part['residual'], strict=True)]
      panel.add('points', part['residual'], i + random.uniform(-0.12, 0.12, len(part)), color=style['color'], filled=not held, size=3.2,
                marker='square' if held else 'circle', label='held out' if held else 'fitted', hover=texts)  # fmt: skip
    panel.add(
      'text', [float(np.median(used))], [i + 0.43], color='ink', hover=[f'median {np.median(np.abs(used)):.2%}']
    )
  text = 'Shapes are kernel densities of the relative residuals of the fitted runs; the median of their absolute value is written above.'
  return Plot('Residuals by law', text, [panel], panel_size=(5.6, 0.9 + 0.75 * len(found)))


@figure('besiroglu-ratio', 'a fit of loss against params and tokens')
def besiroglu_ratio(context: Context) -> Plot:
  """Compute-optimal tokens per parameter against compute, with its 95% band (Besiroglu et al. 2024)."""
  fit, rows = context.joint, context.finals
  c = frontier.compute(rows)
  grid = np.geomspace(c.min() / 3, c.max() * 300, 60)
  n, d = frontier.optimal(fit, grid)
  panel = Panel(common.flops_axis('Compute 6ND (FLOPs)'), Axis('Tokens per parameter', 'log', 'number'), [])
  draws = frontier.samples(fit)
  if draws:
    sn, sd = frontier.optimal(fit, grid, draws)
    for level, alpha in ((95, 0.8), (80, 1.0)):
      low, high = np.nanpercentile(sd / sn, [50 - level / 2, 50 + level / 2], axis=0)
      panel.add('band', grid, low, high=high, color='blue', alpha=alpha, label=f'{level}% band')
  panel.add(
    'line',
    grid,
    d / n,
    color='blue',
    width=1.6,
    label=f'optimum by {fit.law}',
    hover=[f'{ticks.text(r, "number")} tokens per parameter' for r in d / n],
  )
  panel.add('rule', [], [20.0], color='muted', dash='dash', label='20 tokens per parameter')
  ratio = rows['tokens'] / rows['params']
  panel.add(
    'points',
    c,
    ratio,
    color='ink',
    size=2.8,
    alpha=0.7,
    label='runs',
    hover=common.hover(rows.assign(ratio=ratio), ('ratio', 'number'), ('loss', 'number')),
  )
  panel.add('rule', [float(c.max())], [], color='muted', dash='dot', label='largest run')
  text = 'The optimum by the fitted law with bands over its resamples; right of the dotted line it is extrapolated.'
  return Plot('Compute-optimal tokens per parameter', text, [panel], panel_size=(5.2, 3.4))


@figure('corner', 'a fit with resamples')
def corner(context: Context) -> Plot:
  """Corner plot of the fitted parameters over their resamples."""
  fit = context.fits[0] if context.fits else context.joint
  names = [p.name for p in fit.declared.parameters]
  if fit.samples is None or len(fit.samples) < 50:
    raise Unavailable('resamples of a fit: scaling fit --bootstrap=1000')
  draws = np.asarray(fit.samples, float)
  moving = [i for i in range(len(names)) if np.nanstd(draws[:, i]) > 0]
  log = {i: fit.declared.parameters[i].transform == 'log' for i in moving}
  keep = np.all(np.isfinite(draws), axis=1) & np.all([draws[:, i] > 0 for i in moving if log[i]] or [True], axis=0)
  draws = draws[keep]
  span = {i: tuple(np.percentile(draws[:, i], [0.5, 99.5])) for i in moving}
  shown = draws[np.linspace(0, len(draws) - 1, min(len(draws), 400)).round().astype(int)]
  panels = []
  for row, i in enumerate(moving):
    for column, j in enumerate(moving):
      x = Axis(
        names[j] if row == len(moving) - 1 else '',
        'log' if log[j] else 'linear',
        limits=span[j],
        bare=row < len(moving) - 1,
      )
      if column > row:
        panels.append(Panel(x, Axis(''), [], blank=True))
      elif column == row:
        panels.append(_histogram(draws[:, i], x, names[i], fit, log[i]))
      else:
        panel = Panel(
          x, Axis(names[i] if column == 0 else '', 'log' if log[i] else 'linear', limits=span[i], bare=column > 0), []
        )
        panel.add('points', shown[:, j], shown[:, i], color='blue', size=1.6, alpha=0.45)
        panel.add('points', [fit.estimate[names[j]]], [fit.estimate[names[i]]], color='orange', marker='cross', size=5,
                  hover=[f'estimate\n{names[j]} {fit.estimate[names[j]]:.5g}\n{names[i]} {fit.estimate[names[i]]:.5g}'])  # fmt: skip
        panels.append(panel)
  kind = (
    'bootstrap resamples'
    if fit.sample_kind == 'bootstrap'
    else 'draws from the asymptotic normal (no bootstrap was asked for)'
  )
  text = f'{fit.law}, {len(draws)} {kind}; orange marks the estimate, dotted lines the 95% interval.'
  return Plot(
    'Joint distribution of the parameters', text, panels, columns=len(moving), panel_size=(1.75, 1.55), legend=False
  )


def _histogram(values: np.ndarray, x: Axis, name: str, fit: fitting.Fit, log: bool) -> Panel:
  low, high = x.limits
  edges = np.geomspace(low, high, 25) if log else np.linspace(low, high, 25)
  counts, _ = np.histogram(values, edges)
  panel = Panel(
    x, Axis('', limits=(0, 1.1), bare=True), [], title=f'{name} = {ticks.text(fit.estimate[name], "number", 4)}'
  )
  steps = np.repeat(edges, 2)[1:-1]
  texts = [
    f'{name} {ticks.text(a)} to {ticks.text(b)}\n{k} draws'
    for a, b, k in zip(edges[:-1], edges[1:], counts, strict=True)
  ]
  panel.add(
    'line',
    steps,
    np.repeat(counts / counts.max(), 2),
    color='blue',
    width=1.1,
    hover=[t for t in texts for _ in (0, 1)],
  )
  for end in fit.ci95.get(name, ()):
    if end is not None and np.isfinite(end) and (end > 0 or not log):
      panel.add('rule', [end], [], color='muted', dash='dot')
  panel.add('rule', [fit.estimate[name]], [], color='orange', width=1.2)
  return panel


def refit(context: Context, fit: fitting.Fit) -> fitting.Fit:
  """The same fit with its data, which a fit read from a file does not have; Unavailable where the rows are others."""
  if fit.problem is not None:
    return fit
  s = fit.settings
  rows = context.fitted if fit.n_points == len(context.fitted) else context.clean[~context.clean['held_out']]
  columns = {k: v for k, v in (s.get('columns') or {}).items() if k != v}
  try:
    again = fitting.fit(
      rows, fit.declared, loss=s['loss'], delta=s['delta'] or 1e-3, tau=s.get('tau') or 0.5, columns=columns or None, weights=s.get('weights'),
      cluster=s.get('cluster'), fixed=s.get('fixed') or None, bounds={k: tuple(v) for k, v in (s.get('bounds') or {}).items()} or None,
      init=fit.estimate, starts=16, drop=True, probe=False,
    )  # fmt: skip
  except UserError as error:
    raise Unavailable(f'the rows that the fit was made of ({error})') from None
  if again.n_points != fit.n_points:
    raise Unavailable(f'the {fit.n_points} rows that the fit was made of: the records have {again.n_points}')
  return again


@figure('profiles', 'a fit and the rows that it was made of')
def profiles(context: Context) -> Plot:
  """Profile likelihood of each parameter: the objective minimised over all others."""
  from analysis import uncertainty

  if not context.fits:
    raise Unavailable('a fit: scaling fit DIR --law=chinchilla --out=DIR/fits.json')
  fit = refit(context, context.fits[0])
  panels = []
  for i, parameter in enumerate(fit.declared.parameters):
    if not fit.problem.coordinates.moving[i]:
      continue
    found = uncertainty.profile(fit, parameter.name)
    values, statistic = np.asarray(found['values'], float), np.asarray(found['statistic'], float)
    keep = np.isfinite(statistic) & (statistic < 4 * found['threshold'])
    panel = Panel(
      Axis(parameter.name, 'log' if parameter.transform == 'log' else 'linear'),
      Axis('Likelihood ratio', limits=(-0.02 * found['threshold'], 2.6 * found['threshold'])), [],
    )  # fmt: skip
    panel.add('rule', [], [found['threshold']], color='muted', dash='dash', label='95% threshold')
    panel.add('line', values[keep], statistic[keep], color='blue', width=1.4, label='profile',
              hover=[f'{parameter.name} {v:.4g}\nratio {s:.3g}' for v, s in zip(values[keep], statistic[keep], strict=True)])  # fmt: skip
    panel.add('rule', [fit.estimate[parameter.name]], [], color='orange', label='estimate')
    low, high = found['ci']
    open_ = not (np.isfinite(low) and np.isfinite(high)) or (parameter.transform == 'log' and low == 0)
    panel.note, panel.note_at = (
      ('unbounded: ' if open_ else '') + f'[{ticks.text(low)}, {ticks.text(high)}]',
      'upper right',
    )
    panels.append(panel)
  text = f'{fit.law}: the likelihood-ratio statistic at each value of one parameter, all others refitted. A curve that stays below the dashed '
  text += 'line has no bound there: the data do not identify the parameter.'
  return Plot('Profile likelihoods', text, panels, columns=min(3, len(panels)), panel_size=(2.7, 2.2))


@figure('specification', 'final losses over several sizes and token budgets')
def specification_curve(context: Context) -> Plot:
  """Specification curve: the exponent of compute-optimal size under every defensible choice of the analyst."""
  from analysis import specification

  if len(context.fitted) < 8:
    raise Unavailable(f'at least 8 finished runs that are not held out, and there are {len(context.fitted)}')
  laws_used = [
    f.law for f in context.fits if set(f.declared.inputs) == {'params', 'tokens'} and f.declared.exponents
  ] or ['chinchilla']
  try:
    found = specification.run(context.clean, {'law': laws_used, **context.options.get('specification', {})})
  except UserError as error:
    raise Unavailable(str(error)) from None
  return specification_plot(found)


def specification_plot(found) -> Plot:
  """The figure of a `specification.Curve`, whatever its target."""
  from analysis import specification

  rows = found.rows[np.isfinite(found.rows['estimate'])].reset_index(drop=True)
  x = np.arange(len(rows))
  label = {
    'a': 'a (optimal params ~ compute^a)',
    'params': 'Optimal parameters',
    'tokens_per_param': 'Optimal tokens per parameter',
  }
  top = Panel(Axis('', 'linear', limits=(-1, len(rows))), Axis(label[found.target]), [])
  low, high = (np.percentile(rows['estimate'], q) for q in (1, 99))
  reach = max(high - low, 0.1 * abs(low))
  top.y.limits = (low - 0.8 * reach, high + 0.8 * reach)
  axes = [a for a in specification.AXES if rows[a].nunique() > 1]
  texts = [
    '\n'.join([f'a = {r["estimate"]:.3f} [{r["low"]:.3f}, {r["high"]:.3f}]', *(f'{a}: {r[a]}' for a in axes)])
    for r in rows.to_dict('records')
  ]
  top.add(
    'band',
    x,
    rows['low'].clip(*top.y.limits),
    high=rows['high'].clip(*top.y.limits),
    color='blue',
    label='95% interval',
  )
  size = float(np.clip(40 / np.sqrt(len(rows)), 1.8, 4))
  top.add('points', x, rows['estimate'], color='blue', size=size, label='one fit', hover=texts)
  middle = float(rows['estimate'].median())
  top.add('rule', [], [middle], color='orange', dash='dash', label='median')
  top.note = f'{len(rows)} fits, median {middle:.3f}, middle 90% {rows["estimate"].quantile(0.05):.3f} to {rows["estimate"].quantile(0.95):.3f}'
  choices = [(axis, choice) for axis in axes for choice in sorted(rows[axis].unique(), reverse=True)][::-1]
  bottom = Panel(
    Axis('Specifications, by estimate', limits=(-1, len(rows))),
    Axis('', 'category', categories=[f'{a}: {c}' for a, c in choices]),
    [],
  )
  for i, (axis, choice) in enumerate(choices):
    at = x[(rows[axis] == choice).to_numpy()]
    bottom.add(
      'points',
      at,
      np.full(len(at), float(i)),
      color=common.cycle(axes.index(axis))['color'],
      marker='square',
      size=0.8 * size,
    )
  text = 'Each point is one fit; below it, the choices that it makes. Combinations that could not be fitted: '
  text += f'{len(found.rows) - len(rows)}. Held-out runs are never used.'
  return Plot(
    'Specification curve', text, [top, bottom], columns=1, panel_size=(6.6, max(2.4, 0.17 * len(choices) + 0.8))
  )


@figure('backtest', 'final losses over several scales of compute')
def backtest_figure(context: Context) -> Plot:
  """Rolling backtest: laws fitted below a cut in compute, scored above it."""
  from analysis import backtest

  names = [f.law for f in context.predictive] or ['chinchilla']
  try:
    found = backtest.backtest(context.finals, names)
  except UserError as error:
    raise Unavailable(str(error)) from None
  rows = found.rows
  panel = Panel(
    Axis('Compute over the largest fitted', 'log', 'number'), Axis('Predicted / measured − 1', 'linear', 'percent'), []
  )
  panel.add('rule', [], [0.0], color='muted')
  reach = max(0.01, 1.3 * float(rows['error'].abs().quantile(0.95)))
  panel.y.limits = (-reach, reach)
  beyond = int((rows['error'].abs() > reach).sum())
  if beyond:
    panel.note, panel.note_at = f'{beyond} of {len(rows)} beyond the axis', 'upper right'
  for i, (law, part) in enumerate(rows.groupby('law', sort=False)):
    style = common.cycle(i)
    texts = [
      f'{law}\nfitted below {ticks.text(float(c), "flops")}\nerror {e:+.2%}'
      for c, e in zip(part['cut'], part['error'], strict=True)
    ]
    panel.add(
      'points',
      part['reach'],
      part['error'],
      label=f'{law} (median {part["error"].abs().median():.2%})',
      color=style['color'],
      marker=style['marker'],
      size=3.6,
      hover=texts,
    )
  text = 'Each point is one run predicted by a fit to all runs below a cut in compute; right is further beyond the cut.'
  return Plot('Rolling backtest', text, [panel], panel_size=(5.0, 3.2))
