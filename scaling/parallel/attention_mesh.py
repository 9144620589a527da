"""Runs an attention kernel that knows nothing of meshes on each device's own batch rows and heads."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from scaling.parallel import mesh as meshes


def per_device(
  kernel: Callable[..., jax.Array],
  q_bthd: jax.Array,
  k_bskd: jax.Array,
  v_bskd: jax.Array,
  *extras_bt: jax.Array | None,
  time: str | None = None,
) -> jax.Array:
  """`kernel(q, k, v, *extras)` under shard_map over the active mesh; called as it is where there is one device.

  The batch lies over data and fsdp, heads over the tensor axes, as `mesh.RULES` say; what does not divide is whole on
  each device. Key-value heads fewer than the tensor axes are repeated so that each device has those of its queries.

  extras_bt: arrays of [batch or 1, time], or None. time: the mesh axis over which the sequence is split; None: whole.
  """
  active = meshes.active()
  if active is None or active.size == 1:
    return kernel(q_bthd, k_bskd, v_bskd, *extras_bt)
  batch, _, heads, _ = meshes.partition_spec(('batch', None, 'heads', None), q_bthd.shape, active, strict=False)
  if heads is not None:
    tensor = meshes.axis_size(active, *((heads,) if isinstance(heads, str) else heads))
    # It divides the queries per key-value head, as `tensor` divides the heads.
    repeats = tensor // math.gcd(tensor, k_bskd.shape[2])
    if repeats > 1:
      k_bskd, v_bskd = (jnp.repeat(x, repeats, axis=2) for x in (k_bskd, v_bskd))
  whole = PartitionSpec(batch, time, heads, None)
  given = [x for x in extras_bt if x is not None]
  specs = [PartitionSpec(None if x.shape[0] == 1 else batch, time) for x in given]

  def local(q, k, v, *rest):
    rest = iter(rest)
    return kernel(q, k, v, *(None if x is None else next(rest) for x in extras_bt))

  # Kernels say nothing of how their results vary over the mesh, so it is not checked.
  mapped = jax.shard_map(local, mesh=active, in_specs=(whole, whole, whole, *specs), out_specs=whole, check_vma=False)
  return mapped(q_bthd, k_bskd, v_bskd, *given)
