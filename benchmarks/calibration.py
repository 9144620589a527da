"""Do the 95% intervals cover? `python benchmarks/calibration.py [studies]` simulates studies of a known law and counts.

Two designs of the Chinchilla law: 30 final losses (noise 0.5%), and 24 runs of 8 checkpoints that share a run's noise
(0.5% by run, 0.3% by row). For each way of making intervals it prints the share of studies whose interval holds the truth, for
the exponents, the floor, the exponent of N*, and the loss at ten times the largest compute of the study.
"""

import os
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import numpy as np

from analysis import fit, laws, uncertainty

TRUTH = {'E': 1.8, 'A': 480.0, 'alpha': 0.35, 'B': 2100.0, 'beta': 0.37}
TARGET = {'params': 1e10, 'tokens': 4e11}
EXPONENT = TRUTH['beta'] / (TRUTH['alpha'] + TRUTH['beta'])


def outcome(columns: dict) -> np.ndarray:
  law = laws.get('chinchilla')
  return uncertainty.evaluate(law, np.array([[TRUTH[k] for k in law.names]]), columns)[0]


def study(design: str, rng: np.random.Generator) -> dict:
  """One simulated table."""
  if design == 'final losses':
    n, d = (a.ravel() for a in np.meshgrid(np.logspace(7, 9.5, 6), np.logspace(9, 11, 5)))
    runs, noise = np.arange(30), 0.005 * rng.standard_normal(30)
  else:
    n, d = np.repeat(np.repeat(np.logspace(7, 9.5, 12), 2), 8), np.tile(np.logspace(9, 11, 8), 24)
    runs = np.repeat(np.arange(24), 8)
    noise = 0.005 * rng.standard_normal(24)[runs] + 0.003 * rng.standard_normal(192)
  return {'params': n, 'tokens': d, 'loss': outcome({'params': n, 'tokens': d}) * np.exp(noise), 'run_id': runs}


def main(studies: int) -> None:
  at_target = outcome(TARGET)[0]
  for design in ('final losses', 'checkpoints'):
    rng = np.random.default_rng(0)
    hits: dict[tuple, list] = {}

    def record(way, quantity, low, high, truth, hits=hits):
      hits.setdefault((way, quantity), []).append(low <= truth <= high)

    for _ in range(studies):
      table = study(design, rng)
      plain = fit.fit(table, 'chinchilla', probe=False, starts=8)
      boot = fit.fit(table, 'chinchilla', probe=False, starts=8, bootstrap=400)
      for way, found in (('sandwich', plain), ('bootstrap by run', boot)):
        for name in ('alpha', 'beta', 'E'):
          record(way, name, *found.ci95[name], TRUTH[name])
        record(way, 'a', *found.frontier['a']['ci95'], EXPONENT)
        low, high = found.predict_interval(TARGET)
        record(way, 'loss at target', low[0], high[0], at_target)
    for way in ('sandwich', 'bootstrap by run'):
      shares = ', '.join(f'{q} {np.mean(v):.3f}' for (w, q), v in hits.items() if w == way)
      everything = np.mean([v for (w, _), v in hits.items() if w == way])
      print(f'{design}, {way}, {studies} studies: {shares}; all {everything:.3f}', flush=True)


if __name__ == '__main__':
  main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
