"""How fast and how far the fitting engine goes on published data: `python benchmarks/fits.py [--quick]`.

Prints one line per figure. Data sets are read where `analysis.published` finds them; what is not there is left out.
Run it alone on the machine: the times are wall-clock.
"""

import os
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import numpy as np

from analysis import fit, published, uncertainty


def timed(function, *args, **settings):
  began = time.perf_counter()
  result = function(*args, **settings)
  return result, time.perf_counter() - began


def epoch() -> None:
  """The log-Huber fit of 240 points and 4,000 certified resamples, with compilation and after it."""
  data = published.epoch_chinchilla()
  settings = {'cluster': None, 'draws': 0, 'probe': False}
  found, cold = timed(fit.fit, data, 'chinchilla', **settings)
  (_, info), first = timed(uncertainty.bootstrap, found.problem, 4000, 'row')
  (_, again), warm = timed(uncertainty.bootstrap, found.problem, 4000, 'row')
  _, refit = timed(fit.fit, data, 'chinchilla', **settings)
  print(
    f'epoch: objective {found.objective!r}, relative to 0.001018274018: {found.objective / 0.001018274018 - 1:+.1e}'
  )
  print('epoch: ' + ', '.join(f'{k} {v:.7g}' for k, v in found.estimate.items()))
  print(
    f'epoch: {found.certificate["starts_certified"]} of 64 starts certified, {found.certificate["share_at_best"]:.0%} at the best'
  )
  print(f'epoch: fit with compilation {cold:.2f} s, after it {refit:.3f} s')
  print(
    f'epoch: 4,000 resamples after compilation {warm:.2f} s, fit and resamples with compilation {cold + first:.2f} s'
  )
  print(
    f'epoch: resamples certified {again["certified"]} (first pass {info["certified"]}), largest relative decrement {again["worst_decrement"]:.1e}'
  )


def gemstones(quick: bool) -> None:
  """Each published fit matched or beaten; the four-variable fit's time; by-run against by-row errors."""
  settings = {'draws': 0, 'probe': False, 'accept': ('duplicates', 'one-value')}
  worst, beaten, certified, count = -np.inf, 0, 0, 0
  times = []
  for one in published.gemstones_fits():
    if quick and one['law'] != 'chinchilla':
      continue
    data = published.gemstones(one['set'], one['embeddings'])
    found, seconds = timed(fit.fit, data, one['law'], delta=one['delta'], **settings)
    ratio = found.objective / one['objective'] - 1
    worst, beaten, count = max(worst, ratio), beaten + (ratio < -1e-6), count + 1
    certified += found.certificate['certified']
    if one['law'] == 'width-depth-params':
      times.append((one['key'].rpartition('_0_')[2], seconds, ratio))
  print(
    f'gemstones: {count} published fits, worst objective relative to theirs {worst:+.1e}, lower by over 1e-6 in {beaten}, certified {certified}'
  )
  for name, seconds, ratio in times:
    print(f'gemstones: four variables, {name}: {seconds:.2f} s (with compilation where new), objective {ratio:+.1e}')
  for name in ('hot', 'hot_100b+'):
    found = fit.fit(published.gemstones(name), 'chinchilla', bootstrap=1000, probe=False)
    ratios = ', '.join(f'{k} {found.se[k] / found.se_by_row[k]:.1f}' for k in found.se)
    print(
      f'gemstones: {name}, errors by run over errors by row: {ratios}; alpha {found.se_by_row["alpha"]:.4f} by row, {found.se["alpha"]:.4f} by run'
    )


def olmo() -> None:
  """Step-1 predictions with the published settings, and our intervals."""
  worst, covered = 0.0, 0
  for task in (*published.OLMO_TASKS, 'c4'):
    points = published.olmo_ladder_step1(task)
    target, train = points[points.model == '13B-5T'].iloc[-1], points[points['mode'] == 'train']
    table = published.olmo_ladder_published('step1_c4_main' if task == 'c4' else 'step1_main').Pred
    theirs = table.iloc[0] if task == 'c4' else table[task]
    x = {'params': target.params, 'tokens': target.tokens}
    bounds = {'A': (1.0, np.inf), 'B': (1.0, np.inf)}
    worst = max(worst, abs(fit.fit(train, 'chinchilla', bounds=bounds, draws=0, probe=False).predict(x)[0] - theirs))
    low, high = fit.fit(train, 'chinchilla', probe=False).predict_interval(x, new_run=True)
    covered += bool(low[0] <= target.loss <= high[0])
    print(
      f'olmo: {task}: actual {target.loss:.4f}, published {theirs:.4f}, our 95% interval {low[0]:.4f} to {high[0]:.4f}'
    )
  print(
    f'olmo: largest difference from the published predictions {worst:.1e}; our intervals hold {covered} of 9 actual values'
  )


def main() -> None:
  began = time.perf_counter()
  for name, run in (
    ('epoch_chinchilla', epoch),
    ('gemstones', lambda: gemstones('--quick' in sys.argv)),
    ('olmo_ladder', olmo),
  ):
    if published.folder(name) is None:
      print(f'{name}: not here, left out')
    else:
      run()
  print(f'all: {time.perf_counter() - began:.1f} s')


if __name__ == '__main__':
  main()
