"""`scaling plan`: what a study would train, and at what cost."""

import json
import sys
from typing import Any

from absl import flags

from scaling import verbs

USAGE = 'STUDY [--out=DIR] [--topology=v5e:4x4 [--mesh=data=4,model=4]] [--json] [--set path=value ...]'
SUMMARY = 'shapes, tokens, FLOPs, memory, what is shared, estimated time of a study; trains nothing'
DETAILS = """
What is done already in DIR is skipped, and cells that are equal are counted once. FLOPs are given as asked (each cell by
itself), to spend (each distinct cell once) and owed (not done yet). Times come from runs that finished in DIR, else from
earlier sweeps on this machine, else from a rough default.

With --json the keys are: study, out, runs (a list with run_id, name, status, held_out, params_*, tokens, steps, flops, flops_*,
layers, width, heads, learning_rate, batch_size, sequence_length, seconds, memory_bytes), flops_asked, flops_spent, flops_owed,
seconds (of what is owed), seconds_from, memory_bytes (of all workers together), workers, shared. Tokens, FLOPs, bytes and seconds
are plain numbers.

With --topology each distinct shape is also compiled for that TPU slice, by the TPU compiler and without a TPU, and a study with
cells that do not fit is refused with exit status 2; with --json the key compiled has what scaling compile --json tells of each.
"""
EXAMPLES = (
  'scaling plan quickstart',
  "scaling plan my/study.py --json | jq '.flops_owed'",
  'scaling plan my/study.py --topology=v5e:4x4 --mesh=fsdp=16',
)
ARGUMENTS = (1, 1)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string(
    'out', None, 'the folder of results that is looked at; out/STUDY if not given', flag_values=values
  )
  flags.DEFINE_boolean('json', False, 'print one JSON object instead of a table', flag_values=values)
  flags.DEFINE_integer('workers', None, 'processes side by side; one per core or device if not given',
                       lower_bound=1, flag_values=values)  # fmt: skip
  flags.DEFINE_string('topology', None, 'a TPU slice to compile each shape for, as v5e:4x4', flag_values=values)
  flags.DEFINE_string(
    'mesh', None, "with --topology: sizes by axis, or auto; the study's if not given", flag_values=values
  )
  verbs.define_set(values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints the plan. Raises UserError where a cell does not fit on the topology asked for."""
  from pathlib import Path

  from scaling.errors import UserError
  from scaling.sweep import plan
  from scaling.sweep import study as studies

  if values.mesh and not values.topology:
    raise UserError(f'--mesh={values.mesh} says how to lie on a slice: give --topology too, for instance v5e:4x4')
  if values.topology:
    from scaling.parallel import topology as topologies

    topologies.parse(values.topology)  # what is wrong with it is told before anything is loaded
    topologies.prepare()
  study = studies.load(args[0], verbs.overrides(values))
  made = plan.make(study, Path(values.out or verbs.default_out(study)).absolute(), values.workers)
  compiled = _compiled(made, values.topology, values.mesh) if values.topology else None
  if values.json:
    print(json.dumps({**plan.to_json(made), **({} if compiled is None else {'compiled': compiled})}, indent=1))
  else:
    from rich.console import Console

    console = Console()
    console = console if console.is_terminal else Console(width=160)
    for part in plan.table(made):
      console.print(part, highlight=False, markup=False) if isinstance(part, str) else console.print(part)
    for result in compiled or ():
      print(fit_line(result))
  if compiled:
    from scaling.parallel import aot

    if refused := aot.refusal(compiled):
      sys.stdout.flush()
      raise UserError(refused)
  return 0


def _compiled(made: Any, topology: str, mesh: str | None) -> list[dict[str, Any]]:
  """What the TPU compiler says of each distinct shape of a plan."""
  from scaling.parallel import aot

  execution = made.study.execution
  return aot.check_study(
    [cell.run for cell in made.cells],
    topology,
    mesh or execution.mesh,
    execution,
    progress=lambda line: print(line, file=sys.stderr, flush=True),
  )


def fit_line(result: dict[str, Any]) -> str:
  """One shape on a topology in a line."""
  from scaling.verbs.compile import gib, seconds

  names = result['runs']
  line = f'{names[0]}{f" and {len(names) - 1} more" if len(names) > 1 else ""} on {result["topology"]}: '
  if result.get('error'):
    return line + f'cannot be laid out: {result["error"]}'
  memory = result['bytes_per_chip']
  line += f'{result["mesh"]}, {gib(memory["total"])} of {gib(memory["available"])} a chip'
  if not result['fits']:
    return line + ', does NOT fit'
  return line + f', a step about {seconds(result["step_seconds"])} (roofline estimate)'
