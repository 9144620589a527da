"""A study's output folder made from a known law: sizes x budgets with training curves, baselines and fits, no training."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

TRUTH = {'E': 1.1, 'A': 28.0, 'alpha': 0.35, 'B': 190.0, 'beta': 0.37}
SIZES = (14_336, 36_864, 92_160, 221_184, 524_288, 1_179_648)
BUDGETS = (250_000, 500_000, 1_000_000, 2_000_000)


def loss(params, tokens):
  """Chinchilla's law at TRUTH."""
  t = TRUTH
  return t['E'] + t['A'] * np.power(params, -t['alpha']) + t['B'] * np.power(tokens, -t['beta'])


def rows(noise=0.004, seed=0, sizes=SIZES, budgets=BUDGETS, evaluations=10) -> pd.DataFrame:
  """Evaluations of all runs, with the columns that a sweep writes; the two largest computes are held out."""
  random = np.random.default_rng(seed)
  out = []
  for i, n in enumerate(sizes):
    width = 32 * (i + 1)
    for d in budgets:
      run_id = f'{n:x}-{d:x}'
      offset = noise * random.standard_normal()
      for k in range(evaluations + 1):
        tokens = d * k // evaluations
        left = 1 - k / evaluations  # the schedule: above the law until the rate has decayed
        value = 5.55 if k == 0 else min(5.5, float(loss(n, tokens)) * (1 + 0.06 * left) * float(np.exp(offset)))
        out.append({
          'run_id': run_id, 'name': f'ladder-{n // 1000}k-{d // 1000}k', 'step': tokens // 1024, 'tokens': tokens, 'loss': value,
          'train_loss': value * 1.01 if k else None, 'bits_per_byte': value / np.log(2), 'grad_norm': 0.5 + left, 'learning_rate': 1e-3 * left,
          'params': n, 'params_non_embedding': n, 'params_embedding': 257 * width, 'params_total': n + 257 * width,
          'flops': 6 * (n + 257 * width) * tokens, 'flops_kaplan': 6 * n * tokens, 'flops_chinchilla': 6 * (n + 257 * width) * tokens,
          'flops_exact': 6.6 * n * tokens, 'seconds': tokens / 3e4 * (n / 1e5) ** 0.5, 'status': 'done', 'final': k == evaluations,
          'held_out': n * d >= sorted(a * b for a in sizes for b in budgets)[-2], 'diverged': False,
          'learning_rate_peak': round(3e-3 * (1e5 / n) ** 0.3, 5), 'batch_size': 8, 'sequence_length': 128, 'width': width, 'layers': 1 + i,
          'heads': 2 * (i + 1), 'seed': 0, 'corpus': 'sotu', 'tokenizer': 'bytes', 'model.mlp': 'swiglu', 'model.positions': 'rotary',
          'optim.schedule': 'cosine', 'optim.weight_decay': 0.1,
        })  # fmt: skip
  return pd.DataFrame(out)


def write(
  folder: Path, frame: pd.DataFrame | None = None, laws=('chinchilla', 'kaplan'), fit=True, bootstrap=0, **study
) -> Path:
  """The folder that `scaling run` leaves, without its runs."""
  frame = rows() if frame is None else frame
  folder.mkdir(parents=True, exist_ok=True)
  frame.to_parquet(folder / 'runs.parquet')
  last = frame[frame['final']]
  record = {
    'name': 'synthetic', 'title': 'A synthetic study', 'description': 'Losses drawn from a known law.', 'counting': 'params_non_embedding',
    'laws': list(laws), 'figures': [], 'tables': [], 'held_out': last['run_id'][last['held_out']].tolist(),
    'baselines': [
      {'name': 'unigram', 'loss': 3.1, 'bits_per_byte': 3.1 / np.log(2), 'parameters': 257},
      {'name': 'bigram', 'loss': 2.5, 'bits_per_byte': 2.5 / np.log(2), 'parameters': 66049},
      {'name': '6-gram Kneser-Ney', 'loss': 1.9, 'bits_per_byte': 1.9 / np.log(2), 'parameters': 1_400_000},
    ],
    'runs': [{'run_id': r, 'name': n, 'config': {}} for r, n in zip(last['run_id'], last['name'], strict=True)],
  }  # fmt: skip
  (folder / 'study.json').write_text(json.dumps(record | study))
  if fit:
    from analysis import fit as fitting

    used = last[~last['held_out']]
    fitting.save([fitting.fit(used, law, bootstrap=bootstrap) for law in laws], folder / 'fits.json')
  return folder
