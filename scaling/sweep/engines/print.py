"""The engine that starts nothing: one command per owed run, safe to repeat, for a scheduler of the user's own."""

import shlex
import sys

from scaling.sweep.plan import Plan


def commands(made: Plan, python: str = sys.executable) -> list[str]:
  """A shell command per run without a result; each exits 0 at once if its run is done, and 75 if preempted."""
  return [
    shlex.join([python, '-m', 'scaling.train.worker', f'--run_dir={made.out_dir / "runs" / cell.run_id}'])
    for cell in made.owed
  ]
