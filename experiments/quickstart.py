"""A first scaling law: small decoders on the bytes of the presidential messages, in minutes on two CPU cores.

Command: scaling run quickstart
Cost and result: experiments/LOG.md, "quickstart".

Six sizes of the ladder times four token budgets. Batches are small, 512 tokens, so that even the shortest run takes
2,048 updates. The cells with the most compute are held out: the law is fitted without them, and has to predict them.
"""

import dataclasses

from scaling import ledger
from scaling.config import Data, Optim, Run
from scaling.sweep.grid import grid
from scaling.sweep.study import Study, largest_compute

SIZES = ('ladder-6k', 'ladder-8k', 'ladder-16k', 'ladder-32k', 'ladder-64k', 'ladder-128k')
TOKENS = (2**20, 2**21, 2**22, 2**23)


def learning_rate(run: Run) -> float:
  """0.018 at 16k non-embedding parameters, falling as N^-0.55: read off small sweeps at 4k to 128k (LOG.md)."""
  params = ledger.parameters(dataclasses.replace(run.model, vocab=1)).non_embedding
  return round(0.018 * (16_000 / params) ** 0.55, 5)


def study() -> Study:
  """The grid and what is wanted of it."""
  base = Run(
    data=Data(corpus='sotu', tokenizer='bytes', batch_size=4, sequence_length=128, validation_tokens=131_072),
    optim=Optim(schedule='linear', warmup_fraction=0.05, final_fraction=0.0, weight_decay=0.1),
    evaluations=8,
  )
  runs = grid(base, {'model': SIZES, 'data.tokens': TOKENS, 'optim.learning_rate': learning_rate})
  return Study(
    name='quickstart',
    title='Quickstart: a scaling law on the bytes of presidential messages',
    description=(
      f'{len(SIZES)} sizes of the ladder times {len(TOKENS)} token budgets, bytes, sequences of 128, batches of 512 tokens. '
      'The three cells with the most compute are held out.'
    ),
    runs=runs,
    held_out=largest_compute(runs, 3),
    laws=('chinchilla', 'kaplan', 'power-flops', 'power-params', 'power-tokens'),
    bootstrap=1000,
  )
