"""The smallest study that goes the whole road: eight tiny runs on real text, for checking an installation.

Command: scaling run smoke
Cost and result: experiments/LOG.md, "smoke". The law that it fits means nothing: the runs are far too short.
"""

from scaling.config import Data, Optim, Run
from scaling.sweep.grid import grid
from scaling.sweep.study import Study, largest_compute


def study() -> Study:
  """Four sizes times two budgets; the largest cell is held out."""
  base = Run(
    data=Data(corpus='sotu', batch_size=4, sequence_length=64, validation_tokens=8192),
    optim=Optim(learning_rate=1e-2),
    evaluations=4,
  )
  runs = grid(base, {'model': ['ladder-2k', 'ladder-4k', 'ladder-8k', 'ladder-16k'], 'data.tokens': [2**15, 2**16]})
  return Study(
    name='smoke',
    title='Smoke test',
    description='Eight tiny runs, to check that the whole road works here.',
    runs=runs,
    held_out=largest_compute(runs, 1),
    laws=('chinchilla',),
    bootstrap=50,
  )
