"""Finds a mesh: ranks meshes, batch splits and remat policies by the ledger, compiles the best few, ranks those again.

Also says what to change when a program does not fit, with the memory that each change would leave.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from scaling import ledger
from scaling.config import Execution, Run, replace
from scaling.errors import UserError
from scaling.parallel import aot, remat, roofline
from scaling.parallel import topology as topologies
from scaling.parallel.mesh import MeshSpec, check_divides
from scaling.parallel.topology import Topology

MICROBATCHES = (1, 2, 4, 8, 16)
# The ledger's estimate of memory is held to 15% of the compiler's; a candidate is compiled if it may fit.
MARGIN = 1.15
_REMAT_ORDER = ('none', 'attention', 'dots', 'full')


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One way to lay a run on a topology, with the ledger's memory per chip (bytes) and the roofline from shapes alone."""

  spec: MeshSpec
  execution: Execution
  memory: float
  bounds: roofline.Roofline

  def to_dict(self) -> dict[str, Any]:
    return {
      'mesh': str(self.spec),
      'remat': self.execution.remat,
      'microbatches': self.execution.microbatches,
      'total': int(self.memory),
      'step_seconds': self.bounds.step_seconds,
      'mfu': self.bounds.mfu,
      'bound': self.bounds.bound,
    }


def meshes(run: Run, where: Topology) -> Iterator[MeshSpec]:
  """Every mesh of data, fsdp and model that the run's shape and batch divide over and that lies across the slices."""
  for model in _divisors(where.chips):
    if model > min(run.model.heads, where.chips // where.slices):
      continue
    for fsdp in _divisors(where.chips // model):
      spec = MeshSpec(data=where.chips // model // fsdp, fsdp=fsdp, model=model)
      if spec.data % where.slices and spec.fsdp % where.slices:
        continue
      try:
        check_divides(run, Execution(), spec.shape)
      except UserError:
        continue
      yield spec


def candidates(run: Run, where: Topology, execution: Execution) -> list[Candidate]:
  """All candidates, those that may fit first, the fastest by the roofline first among them. Compiles nothing."""
  out = []
  policies = [name for name in _REMAT_ORDER if name in remat.POLICIES]
  for spec in meshes(run, where):
    try:
      places = roofline.places(aot.make_mesh(spec, where))
    except (UserError, NotImplementedError, ValueError):
      continue  # no assignment of the physical axes to this mesh
    for policy, parts in itertools.product(policies, MICROBATCHES):
      if run.data.batch_size % (spec.data * spec.fsdp * parts):
        continue
      how = dataclasses.replace(execution, remat=policy, microbatches=parts)
      out.append(Candidate(spec, how, _memory(run, how, spec), expected(run, how, where, spec, places)))
  available = aot.AVAILABLE[where.family]
  return sorted(
    out, key=lambda c: (c.memory > available * MARGIN, c.bounds.step_seconds, c.execution.microbatches, c.memory)
  )


def expected(run: Run, execution: Execution, where: Topology, spec: MeshSpec, places: np.ndarray) -> roofline.Roofline:
  """The roofline of a step from shapes alone."""
  collectives = roofline.expected_collectives(run, execution, spec.shape)
  traffic = roofline.expected_traffic(run, execution, spec.shape)
  return roofline.estimate(run, execution, where, places, collectives, traffic)


def search(
  run: Run,
  where: Topology,
  execution: Execution | None = None,
  *,
  keep: int = 3,
  progress: Callable[[str], None] | None = None,
) -> list[dict]:
  """Compiles the `keep` most promising candidates, each on another mesh or remat, and returns them ranked.

  Results are as of aot.compile_run; the first also has `ranking`, the estimates of the best 10 candidates, and
  `searched`, their number. Raises UserError where no mesh divides the run, or none is near fitting.
  """
  found = candidates(run, where, execution or Execution())
  if not found:
    raise UserError(
      f'no mesh of {where.chips} chips divides heads={run.model.heads}, width={run.model.width} and '
      f'batch_size={run.data.batch_size}: take a batch that is a multiple of {where.chips}'
    )
  available = aot.AVAILABLE[where.family]
  promising = [c for c in found if c.memory <= available * MARGIN]
  if not promising:
    least = min(found, key=lambda c: c.memory)
    size = topologies.nearest(where.family, (int(where.chips * least.memory / available * 1.5),))
    raise UserError(
      f'nothing fits on {where}: the least memory is about {least.memory / 2**30:.1f} GiB a chip of '
      f'{available / 2**30:.1f} ({least.spec}, remat={least.execution.remat}): take a smaller batch or, for instance, {size}'
    )
  results: list[dict] = []
  tried: set[tuple[str, str]] = set()
  for candidate in promising:
    key = (str(candidate.spec), candidate.execution.remat)
    if key in tried:
      continue
    tried.add(key)
    if progress:
      progress(f'compiling {candidate.spec} with remat={candidate.execution.remat}')
    result = aot.compile_run(run, candidate.execution, str(where), str(candidate.spec))
    results.append({**result, 'estimate': candidate.to_dict(), 'runs': [run.name or run.run_id]})
    if sum(r['fits'] for r in results) >= keep or len(results) >= 2 * keep:
      break
  results.sort(key=lambda r: (not r['fits'], r['step_seconds'] or 0.0, r['bytes_per_chip']['total']))
  results[0] = {**results[0], 'ranking': [c.to_dict() for c in found[:10]], 'searched': len(found)}
  return results


def advice(run: Run, execution: Execution, where: Topology, spec: MeshSpec, total: int) -> list[str]:
  """What would bring a program of `total` bytes a chip within the chip's memory: one line a change, as one types it,
  with the memory that it leaves: the ledger's, scaled so that the program at hand has `total`.

  Changes that are enough come first, the cheapest in speed first, a larger slice last. Where no change is enough, the
  two that help most are named, and said to be too little.
  """
  available = aot.AVAILABLE[where.family]
  scale = total / _memory(run, execution, spec)
  tries: list[tuple[str, Run, Execution, MeshSpec]] = []
  fully = dataclasses.replace(spec, data=1, fsdp=spec.data * spec.fsdp)
  if spec.data > 1 and run.model.width % fully.fsdp == 0:
    tries.append((f'--mesh={fully}', run, execution, fully))
  length = run.data.sequence_length
  if execution.loss_chunk is None and length % 8 == 0 and length >= 1024:
    tries.append(_with(run, execution, spec, loss_chunk=length // 8))
  after = _REMAT_ORDER[_REMAT_ORDER.index(execution.remat) + 1 :] if execution.remat in _REMAT_ORDER else ('full',)
  lighter = [name for name in after if name in remat.POLICIES]
  tries += [_with(run, execution, spec, remat=name) for name in lighter]
  rows = run.data.batch_size // (spec.data * spec.fsdp * execution.microbatches)
  parts = [n for n in _divisors(rows) if n > 1]
  tries += [_with(run, execution, spec, microbatches=n * execution.microbatches) for n in parts]
  if lighter:
    tries += [_with(run, execution, fully, remat='full')] if fully != spec and tries[0][3] == fully else []
    tries += [_with(run, execution, spec, remat='full', microbatches=n * execution.microbatches) for n in parts[-1:]]
  for n in parts:
    smaller = replace(run, {'data.batch_size': run.data.batch_size // n})
    tries.append((f'--set data.batch_size={smaller.data.batch_size}', smaller, execution, spec))
  out = [_entry(change, _memory(*rest) * scale, available) for change, *rest in tries]
  fitting = [entry for entry in out if entry['fits']]
  if not fitting:
    fitting = sorted(out, key=lambda e: e['total'])[:2]
  entries = [*_first_of_each(fitting), *_larger(run, execution, where, spec, scale, available)]
  return [
    f'{e["change"]}: about {e["total"] / 2**30:.1f} GiB a chip{"" if e["fits"] else ", still too much"}'
    for e in entries
  ]


def _first_of_each(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The first entry of each kind of change: the gentlest microbatching, the largest batch."""
  seen, out = set(), []
  for entry in entries:
    kind = tuple(word.split('=')[0] for word in entry['change'].split())
    if kind not in seen:
      seen.add(kind)
      out.append(entry)
  return out


def _larger(
  run: Run, execution: Execution, where: Topology, spec: MeshSpec, scale: float, available: float
) -> list[dict[str, Any]]:
  """The smallest larger slice on which the same batch fits, fully sharded over what is added."""
  count = where.chips
  while count < 8 * where.chips:
    count *= 2
    bigger = topologies.nearest(where.family, (count,))
    wider = dataclasses.replace(spec, fsdp=spec.fsdp * bigger.chips // where.chips)
    if bigger.chips != count or run.model.width % wider.fsdp or run.data.batch_size % (wider.data * wider.fsdp):
      continue
    entry = _entry(f'--topology={bigger} --mesh={wider}', _memory(run, execution, wider) * scale, available)
    if entry['fits']:
      return [entry]
  return []


def _with(run: Run, execution: Execution, spec: MeshSpec, **how: Any) -> tuple[str, Run, Execution, MeshSpec]:
  change = ' '.join(f'--set execution.{k}={v}' for k, v in how.items())
  return change, run, dataclasses.replace(execution, **how), spec


def _entry(change: str, total: float, available: float) -> dict[str, Any]:
  return {'change': change, 'total': int(total), 'fits': total <= available}


def _memory(run: Run, execution: Execution, spec: MeshSpec) -> float:
  return ledger.memory(run, execution, spec.shape, platform='tpu').total


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
