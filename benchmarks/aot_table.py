"""Memory per chip and estimated MFU of published shapes on TPU slices, compiled on a machine without a TPU.

    python benchmarks/aot_table.py            every cell, each in a process of its own
    python benchmarks/aot_table.py 3          the cell of this index, as one JSON line
    python benchmarks/aot_table.py --list     the cells
    python benchmarks/aot_table.py --table    the table of such JSON lines, from standard input

The table goes to standard output in Markdown. MFU is the roofline's estimate (scaling.parallel.roofline), not measured;
"from shapes" where the compiler does not give the program's text, so that its collectives and traffic are expected ones.
"""

import json
import subprocess
import sys

# Preset, topology, mesh, remat. Sequences of 2,048 tokens (or the preset's context), 8 of them a chip.
CELLS = (
  ('gpt3-125m', 'v5e:2x2', 'fsdp=4', 'none'),
  ('gpt3-350m', 'v6e:2x4', 'fsdp=8', 'dots'),
  ('llama3.2-1b', 'v5e:4x4', 'fsdp=16', 'full'),
  ('gpt3-1.3b', 'v4:2x4x4', 'fsdp=32', 'full'),
  ('llama3-8b', 'v5e:8x8', 'fsdp=64', 'full'),
  ('llama3-8b', 'v5p:4x4x4', 'fsdp=16,model=4', 'full'),
  ('llama2-13b', 'v6e:8x16', 'fsdp=128', 'full'),
  ('llama-33b', 'v4:4x8x8', 'fsdp=256', 'full'),
  ('llama2-70b', 'v5p:8x8x8', 'fsdp=512', 'full'),
  ('llama2-70b', 'v5p:8x8x16', 'fsdp=256,model=4', 'full'),
  ('llama2-70b', '4*v6e:16x16', 'data=4,fsdp=256', 'full'),
)
GIB = 2**30


def cell(index: int) -> dict:
  """Compiles one cell and returns what the table shows."""
  from scaling import ledger
  from scaling.config import Execution
  from scaling.parallel import aot, topology
  from scaling.parallel.mesh import MeshSpec

  preset, slice_name, mesh, remat = CELLS[index]
  run = aot.preset_run(preset, topology.parse(slice_name).chips)
  execution = Execution(remat=remat)
  result = aot.compile_run(run, execution, slice_name, mesh)
  estimate = ledger.memory(run, execution, MeshSpec.parse(mesh).shape, platform='tpu').total
  bounds = result['roofline'] or {}
  return {
    'preset': preset,
    'params': result['params_total'],
    'topology': slice_name,
    'chips': result['chips'],
    'mesh': mesh,
    'remat': remat,
    'batch': run.data.batch_size,
    'length': run.data.sequence_length,
    'total': result['bytes_per_chip']['total'],
    'available': result['bytes_per_chip']['available'],
    'ledger': estimate,
    'fits': result['fits'],
    'mfu': result['mfu'],
    'step_seconds': result['step_seconds'],
    'bound': bounds.get('bound'),
    'compute': bounds.get('compute_seconds'),
    'memory': bounds.get('memory_seconds'),
    'roofline_from': result.get('roofline_from'),
    'network': (bounds.get('network_overlapped_seconds', 0), bounds.get('network_exposed_seconds', 0)),
    'compile_seconds': result['compile_seconds'],
  }


def table(rows: list[dict]) -> str:
  """The rows as a Markdown table."""
  head = (
    'preset',
    'parameters',
    'slice',
    'chips',
    'mesh',
    'remat',
    'tokens a step',
    'GiB a chip',
    'of',
    'ledger / compiler',
  )
  head += ('compute s', 'memory s', 'network s (beside + alone)', 'step s', 'estimated MFU', 'compiled in s')
  lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
  for r in rows:
    speed = ['-'] * 5
    if r['fits']:
      beside, alone = r['network']
      speed = [f'{r["compute"]:.3g}', f'{r["memory"]:.3g}', f'{beside:.3g} + {alone:.3g}', f'{r["step_seconds"]:.3g}']
      speed.append(f'{r["mfu"]:.0%}' + (' (from shapes)' if r['roofline_from'] == 'shapes' else ''))
    fields = [
      r['preset'], f'{r["params"] / 1e9:.3g}B', r['topology'].replace('*', '\\*'), r['chips'], r['mesh'], r['remat'],
      f'{r["batch"] * r["length"]:,}', f'{r["total"] / GIB:.2f}' + ('' if r['fits'] else ' (does not fit)'),
      f'{r["available"] / GIB:.2f}', f'{r["ledger"] / r["total"]:.2f}', *speed, f'{r["compile_seconds"]:.0f}',
    ]  # fmt: skip
    lines.append('| ' + ' | '.join(map(str, fields)) + ' |')
  return '\n'.join(lines)


def main(args: list[str]) -> int:
  if args == ['--list']:
    print('\n'.join(f'{i} {" ".join(c)}' for i, c in enumerate(CELLS)))
    return 0
  if args and args[0] == '--table':  # JSON lines of finished cells
    print(table([json.loads(line) for line in sys.stdin if line.startswith('{')]))
    return 0
  if args:
    print(json.dumps(cell(int(args[0]))))
    return 0
  rows = []
  for index in range(len(CELLS)):
    done = subprocess.run([sys.executable, __file__, str(index)], capture_output=True, text=True, check=False)
    if done.returncode:
      print(f'{" ".join(CELLS[index])}: {done.stderr.strip().splitlines()[-1]}', file=sys.stderr)
    else:
      rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
  print(table(rows))
  return 0 if len(rows) == len(CELLS) else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
