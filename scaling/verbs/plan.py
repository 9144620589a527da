"""`scaling plan`: what a study would train, and at what cost."""

import json

from absl import flags

from scaling import verbs

USAGE = 'STUDY [--out=DIR] [--json] [--set path=value ...]'
SUMMARY = 'shapes, tokens, FLOPs, memory, what is shared, estimated time of a study; trains nothing'
DETAILS = """
What is done already in DIR is skipped, and cells that are equal are counted once. FLOPs are given as asked (each cell by
itself), to spend (each distinct cell once) and owed (not done yet). Times come from runs that finished in DIR, else from
earlier sweeps on this machine, else from a rough default.

With --json the keys are: study, out, runs (a list with run_id, name, status, held_out, params_*, tokens, steps, flops, flops_*,
layers, width, heads, learning_rate, batch_size, sequence_length, seconds, memory_bytes), flops_asked, flops_spent, flops_owed,
seconds (of what is owed), seconds_from, memory_bytes (of all workers together), workers, shared. Tokens, FLOPs, bytes and seconds
are plain numbers.
"""
EXAMPLES = ('scaling plan quickstart', "scaling plan my/study.py --json | jq '.flops_owed'")
ARGUMENTS = (1, 1)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string(
    'out', None, 'the folder of results that is looked at; out/STUDY if not given', flag_values=values
  )
  flags.DEFINE_boolean('json', False, 'print one JSON object instead of a table', flag_values=values)
  flags.DEFINE_integer('workers', None, 'processes side by side; one per core or device if not given',
                       lower_bound=1, flag_values=values)  # fmt: skip
  verbs.define_set(values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints the plan."""
  from pathlib import Path

  from scaling.sweep import plan
  from scaling.sweep import study as studies

  study = studies.load(args[0], verbs.overrides(values))
  made = plan.make(study, Path(values.out or verbs.default_out(study)).absolute(), values.workers)
  if values.json:
    print(json.dumps(plan.to_json(made), indent=1))
    return 0
  from rich.console import Console

  console = Console()
  console = console if console.is_terminal else Console(width=160)
  for part in plan.table(made):
    console.print(part, highlight=False, markup=False) if isinstance(part, str) else console.print(part)
  return 0
