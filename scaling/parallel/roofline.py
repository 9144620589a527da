"""What bounds a training step: compute, main memory or the network, each in seconds, and the MFU that follows.

A roofline (Williams et al. 2009, doi:10.1145/1498765.1498785) of the whole step: peak rates of the chip, bytes and
collectives of the compiled program, ring algorithms on the physical torus. It knows no kernel's inefficiency beyond one
stated factor, `ATTAINABLE`, so read it as what a good program may reach.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling import ledger
from scaling.config import Execution, Model, Run
from scaling.parallel.hlo import Collective
from scaling.parallel.topology import Topology

# Share of the peak that the matmuls of a whole step are taken to reach. An assumption, not a measurement: the best
# published whole-step MFU of dense models on TPU is 65% (Llama 2 70B on v5p, MaxText docs/reference/models/tiering.md),
# and part of such a step is not matmuls.
ATTAINABLE = 0.7

MATRIX_UNIT = 128  # rows of a TPU's matrix unit: attention over smaller heads fills only part of it


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of one step by resource; `network` holds what runs beside compute and what does not."""

  compute_seconds: float  # at ATTAINABLE of the peak, recomputation included
  memory_seconds: float
  network_overlapped_seconds: float
  network_exposed_seconds: float
  step_seconds: float
  bound: str  # the resource that bounds the step
  mfu: float  # exact causal FLOPs of the ledger over the chips' peak

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def estimate(
  run: Run,
  execution: Execution,
  topology: Topology,
  places: np.ndarray,
  collectives: Sequence[Collective],
  traffic: float,
  attainable: float = ATTAINABLE,
) -> Roofline:
  """The roofline of one step.

  Args:
    places: for each device of the flattened mesh its slice and its coordinates in it [devices, 1 + axes].
    collectives: of one step, per device.
    traffic: bytes read from and written to main memory in one step, per device.
    attainable: share of the peak FLOP rate that matmuls reach.
  """
  chip, model = topology.chip, run.model
  tokens = run.data.batch_tokens
  useful = ledger.flops_per_token(model, run.data.sequence_length).exact_causal * tokens
  done = useful + extra_flops_per_token(model, run.data.sequence_length, execution) * tokens
  compute = done / topology.chips / (chip.flops * attainable)
  memory = traffic / chip.hbm_bandwidth
  beside, alone = 0.0, 0.0
  for collective in collectives:
    seconds = collective_seconds(collective, topology, places) * collective.times
    if collective.overlapped:
      beside += seconds
    else:
      alone += seconds
  parts = {'compute': compute, 'memory': memory, 'network': beside}
  bound = max(parts, key=parts.get)
  step = parts[bound] + alone
  if alone > parts[bound]:
    bound = 'network'
  return Roofline(
    compute_seconds=compute,
    memory_seconds=memory,
    network_overlapped_seconds=beside,
    network_exposed_seconds=alone,
    step_seconds=step,
    bound=bound,
    mfu=useful / (step * topology.chips * chip.flops),
  )


def extra_flops_per_token(model: Model, sequence_length: int, execution: Execution) -> float:
  """FLOPs per token that the chip spends and the ledger does not count, by three causes.

  Remat policies run the blocks' forward again, in whole or in part; a flash kernel's backward computes the scores
  again; and heads smaller than the matrix unit leave part of it idle, which is charged as if it were work.
  """
  flops = ledger.flops_per_token(model, sequence_length)
  head = 2 * model.width * model.vocab
  keys = sum(ledger.mean_keys(sequence_length, model.layer_window(i)) for i in range(model.layers))
  attention = 4 * model.heads * model.head_size * keys  # forward
  weights = flops.exact_causal / 3 - head - attention
  again = {'full': weights + attention, 'dots': attention, 'attention': weights}.get(execution.remat, 0.0)
  padding = max(MATRIX_UNIT / model.head_size, 1.0) - 1.0
  attention_runs = 3 + (execution.remat in ('full', 'dots')) + 0.5
  return again + attention / 2 + attention * attention_runs * padding


def places(mesh: Any) -> np.ndarray:
  """Slice and physical coordinates of each device of a mesh, in its flattened order [devices, 1 + axes]."""
  return np.array([(getattr(d, 'slice_index', 0) or 0, *d.coords) for d in mesh.devices.flat])


def collective_seconds(collective: Collective, topology: Topology, places: np.ndarray) -> float:
  """Seconds of one run of a collective, by ring algorithms over each physical axis that its group spans.

  With n members and a payload of b bytes a device sends (n-1)/n b to gather or to scatter, twice that to reduce to
  all, and b to its neighbour in a permutation; an all-to-all crosses n/4 links on average in a closed ring.
  """
  n = len(collective.group)
  if n <= 1:
    return 0.0
  where = places[list(collective.group)]
  slices = len(np.unique(where[:, 0]))
  inside = n // slices
  size = collective.bytes
  total = 0.0
  if inside > 1:
    rate, extent = ici_rate(where[where[:, 0] == where[0, 0]][:, 1:], topology)
    total += _sent(collective.kind, size, inside, extent) / rate
  if slices > 1:
    total += _sent(collective.kind, size / inside, slices, slices) / topology.dcn
  return total


def _sent(kind: str, size: float, n: int, extent: int) -> float:
  if kind == 'all-reduce':
    return 2 * size * (n - 1) / n
  if kind in ('all-to-all', 'ragged-all-to-all'):
    return size * max(extent / 4, (n - 1) / n)
  if kind == 'collective-permute':
    return size
  return size * (n - 1) / n


def ici_rate(coordinates: np.ndarray, topology: Topology) -> tuple[float, int]:
  """Bytes per second that a device of this group sends over its links to the group, and the group's longest extent.

  Along a physical axis that the group fills and that closes to a ring both directions help; along an open line one
  does, as its ends have no other way. Members that stand apart share their links with the groups between them.
  """
  link = topology.chip.interconnect / topology.chip.links
  rate, longest = 0.0, 1
  for axis, size in enumerate(topology.shape):
    used = np.unique(coordinates[:, axis])
    if len(used) < 2:
      continue
    extent = int(used[-1] - used[0] + 1)
    closed = topology.wrap[axis] and len(used) == size
    rate += link * (2 if closed else 1) * len(used) / extent
    longest = max(longest, len(used))
  return rate or link, longest


def axis_group(mesh_shape: dict[str, int], names: Sequence[str]) -> tuple[int, ...]:
  """The first group along these mesh axes: positions in the flattened mesh."""
  sizes = list(mesh_shape.values())
  ids = np.arange(int(np.prod(sizes))).reshape(sizes)
  index = tuple(slice(None) if name in names else 0 for name in mesh_shape)
  return tuple(int(i) for i in ids[index].reshape(-1))


def axes_of(group: Sequence[int], mesh_shape: dict[str, int]) -> str:
  """The mesh axes along which a group's members differ, as 'fsdp' or 'data+fsdp'."""
  if len(group) < 2:
    return 'none'
  index = np.array(np.unravel_index(list(group), list(mesh_shape.values())))
  return '+'.join(name for name, row in zip(mesh_shape, index, strict=True) if len(np.unique(row)) > 1)


def summary(
  collectives: Sequence[Collective], topology: Topology, places: np.ndarray, mesh_shape: dict[str, int]
) -> list[dict[str, Any]]:
  """Collectives by kind and mesh axes: how many in a step, their bytes per device, and seconds; largest first."""
  rows: dict[tuple[str, str, bool], dict[str, Any]] = {}
  for c in collectives:
    if len(c.group) < 2:
      continue
    key = (c.kind, axes_of(c.group, mesh_shape), c.overlapped)
    row = rows.setdefault(
      key, {'kind': c.kind, 'axes': key[1], 'overlapped': c.overlapped, 'count': 0, 'bytes': 0, 'seconds': 0.0}
    )
    row['count'] += c.times
    row['bytes'] += c.bytes * c.times
    row['seconds'] += collective_seconds(c, topology, places) * c.times
  return sorted(rows.values(), key=lambda row: -row['seconds'])


def expected_collectives(run: Run, execution: Execution, mesh_shape: dict[str, int]) -> list[Collective]:
  """The collectives that a mesh brings, from the model's shape alone: for ranking meshes before any compiles.

  Weights and gradients travel in bfloat16 over fsdp: gathered forward and backward, gradients scattered; once for each
  microbatch. Over data they are all-reduced. Tensor axes reduce two activations a layer in each direction, and two more
  where the forward is run again; a context ring passes keys and values round, and their gradients back.
  """
  model, data = run.model, run.data
  shape = {name: mesh_shape.get(name, 1) for name in mesh_shape}
  tensor_axes = [a for a in ('sequence', 'model') if shape.get(a, 1) > 1]
  tensor = int(np.prod([shape[a] for a in tensor_axes])) if tensor_axes else 1
  fsdp, copies, context = (shape.get(a, 1) for a in ('fsdp', 'data', 'context'))
  parts = execution.microbatches
  weights = 2 * ledger.parameters(model).total // tensor
  tokens = data.batch_tokens // (copies * fsdp * context * parts)
  out = []
  if fsdp > 1:
    group = axis_group(shape, ['fsdp'])
    out.append(Collective('all-gather', weights, group, 2 * parts, True))
    out.append(Collective('reduce-scatter', weights, group, parts, True))
  if copies > 1:
    out.append(Collective('all-reduce', weights // fsdp, axis_group(shape, ['data']), 1, False))
  if tensor > 1:
    times = (6 if execution.remat in ('full', 'attention') else 4) * model.layers * parts
    out.append(Collective('all-reduce', 2 * tokens * model.width, axis_group(shape, tensor_axes), times, False))
  if context > 1:
    kv_bytes = 2 * 2 * tokens * max(model.kv_head_count // tensor, 1) * model.head_size
    times = 3 * (context - 1) * model.layers * parts
    out.append(Collective('collective-permute', kv_bytes, axis_group(shape, ['context']), times, True))
    out.append(Collective('all-reduce', weights // fsdp, axis_group(shape, ['context']), 1, False))
  return out


def expected_traffic(run: Run, execution: Execution, mesh_shape: dict[str, int]) -> float:
  """Bytes to and from main memory per device and step, from the model's shape alone; coarse, for ranking.

  Optimiser: weights, gradients and two moments in float32, read and written. Weights in bfloat16: written when
  gathered, read forward, backward twice, and where the forward is run again. Activations: each matmul's operands and
  results once forward and twice backward. Logits: float32, written and read forward and backward.
  """
  model, data = run.model, run.data
  size = {name: mesh_shape.get(name, 1) for name in ('data', 'fsdp', 'context', 'sequence', 'model')}
  tensor = size['sequence'] * size['model']
  again = execution.remat in ('full', 'attention')
  count = ledger.parameters(model).total
  tokens = data.batch_tokens / (size['data'] * size['fsdp'] * size['context'])
  optimiser = 8 * 4 * count / (tensor * size['fsdp'])
  weights = (5 + again) * 2 * count / tensor * execution.microbatches
  heads = (2 * model.heads + 2 * model.kv_head_count) * model.head_size
  mlp = (4 if model.mlp == 'swiglu' else 2) * model.mlp_size
  per_layer = 2 * (8 * model.width + (heads + mlp) / tensor)
  activations = (3 + again) * per_layer * model.layers * tokens
  logits = 4 * 4 * tokens * model.vocab / tensor
  return optimiser + weights + activations + logits
