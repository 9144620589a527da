"""`scaling compile`: a training step compiled for a machine that is not here."""

import json
import sys
from typing import Any

from absl import flags

from scaling import verbs

USAGE = 'STUDY_OR_PRESET --topology=v5e:4x4 [--mesh=data=4,model=4] [--search] [--json] [--set path=value ...]'
SUMMARY = 'ahead-of-time compile for a TPU slice, on any machine: memory per chip, FLOPs, collectives, step time'
DETAILS = """
The real TPU compiler runs here, so that sharding, kernels and memory are known before a slice is paid for; no TPU is needed, but the
package libtpu is (pip install -e ".[tpu]"). Of a study, each distinct shape is compiled once. --search tries meshes,
batch splits and remat policies for the first shape, and ranks what fits. Step time and MFU are a roofline estimate.

With --json: one object, or a list of them where there are several shapes, with topology, chips, mesh, bytes_per_chip (arguments,
temporaries, total, available), fits, flops, collectives, step_seconds, mfu.
"""
EXAMPLES = (
  'scaling compile llama-7b --topology=v5p:2x4x4 --mesh=fsdp=32 --json',
  'scaling compile gpt3-1.3b --topology=v5e:4x4 --search',
)
ARGUMENTS = (1, 1)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string('topology', 'v5e:4x4', 'TPU generation and shape of the slice', flag_values=values)
  flags.DEFINE_string('mesh', 'auto', 'sizes by axis (data, fsdp, model, context), or auto', flag_values=values)
  flags.DEFINE_boolean('search', False, 'rank meshes, batch splits and remat policies', flag_values=values)
  flags.DEFINE_boolean('json', False, 'print JSON', flag_values=values)
  verbs.define_set(values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints what compiling found; exit status 1 if nothing fits."""
  verbs.overrides(values)  # unknown paths are told before anything is loaded
  from scaling.parallel import aot

  results = aot.compile_verb(
    args[0],
    values.topology,
    values.mesh,
    values.set or (),
    search=values.search,
    progress=lambda line: print(line, file=sys.stderr, flush=True),
  )
  if values.json:
    print(json.dumps(results[0] if len(results) == 1 else results, indent=1))
  else:
    print('\n\n'.join(text(result) for result in results))
  return 0 if any(result.get('fits') for result in results) else 1


def text(result: dict[str, Any]) -> str:
  """One result in a few lines."""
  names = result.get('runs') or [result.get('name', '')]
  lines = [f'{names[0]}{f" and {len(names) - 1} more" if len(names) > 1 else ""} on {result.get("topology")}']
  if result.get('error'):
    return '\n'.join([*lines, f'  cannot be laid out: {result["error"]}'])
  memory = result['bytes_per_chip']
  lines.append(f'  mesh {mesh_text(result["mesh"])}, {result["chips"]} chips')
  lines.append(
    f'  memory per chip: {gib(memory["total"])} of {gib(memory["available"])} '
    f'(arguments {gib(memory["arguments"])}, temporaries {gib(memory["temporaries"])}): '
    f'{"fits" if result["fits"] else "does NOT fit"}'
  )
  if result.get('step_seconds'):
    lines.append(f'  step: about {seconds(result["step_seconds"])}, MFU {result["mfu"]:.1%} (roofline estimate)')
  for collective in result.get('collectives') or ():
    size = collective.get('bytes_per_chip', collective.get('bytes', 0))
    lines.append(
      f'  {collective.get("kind")} over {collective.get("axes")}: {collective.get("count")} a step, {gib(size)} per chip'
    )
  advice = result.get('advice') or []
  return '\n'.join([*lines, *(f'  {line}' for line in ([advice] if isinstance(advice, str) else advice))])


def gib(size: float) -> str:
  """Bytes as chips and compilers count them, in GiB; small ones in MiB."""
  return f'{size / 2**30:.2f} GiB' if size >= 2**30 / 10 else f'{size / 2**20:.3g} MiB'


def seconds(value: float) -> str:
  """The time of a step."""
  return f'{value:.3g} s' if value >= 1 else f'{1e3 * value:.3g} ms'


def mesh_text(mesh: Any) -> str:
  """{'data': 4, 'model': 1} -> 'data=4'."""
  if isinstance(mesh, dict):
    return ','.join(f'{axis}={size}' for axis, size in mesh.items() if size != 1) or 'of one chip'
  return str(mesh)
