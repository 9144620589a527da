"""Cross-entropy in nats, in float32, in chunks that never hold all logits, over a vocabulary that may be sharded."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from scaling.config import Model
from scaling.models import decoder
from scaling.parallel import kernels, mesh

# Float32 logits that one device may hold at once. Chunks cost speed on an accelerator, where large matmuls are fast;
# a CPU gains by those that its cache holds: 64 MiB at once made whole steps up to 1.17 times as long (RESULTS.md).
LOGITS_BYTES = {'cpu': 16 << 20, 'gpu': 1 << 30, 'tpu': 1 << 29}


def chunk_size(model: Model, batch: int, time: int, requested: int | None = None) -> int:
  """Positions of a sequence per chunk: a divisor of `time`, at most `requested`, or chosen by `LOGITS_BYTES`.

  batch: sequences of the whole mesh; the active mesh says how many of them, and of the vocabulary, a device holds.
  """
  if requested is None:
    active = mesh.active()
    share = mesh.axis_size(active, 'data', 'fsdp') * mesh.axis_size(active, *mesh.TENSOR)
    limit = LOGITS_BYTES.get(kernels.target_platform(), LOGITS_BYTES['gpu'])
    requested = max(limit * share // (4 * batch * model.vocab), 1)
  requested = min(requested, time)
  return next(size for size in range(requested, 0, -1) if time % size == 0)


def cross_entropy(
  model: Model,
  params: Any,
  x_btd: jax.Array,
  targets_bt: jax.Array,
  mask_bt: jax.Array | None = None,
  chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The summed negative log-likelihood of the targets, in nats, and the count of targets; both float32 scalars.

  x_btd: final hidden states. mask_bt: 1 where a target counts; None: everywhere. chunk: positions of the sequence
  whose logits exist at once; None: chosen by memory. With more than one chunk the gradient is taken chunk by chunk
  in the forward pass, so that logits are neither kept nor computed twice.
  """
  batch, time = x_btd.shape[:2]
  size = chunk_size(model, batch, time, chunk)
  count = jnp.float32(batch * time) if mask_bt is None else mask_bt.sum(dtype=jnp.float32)
  if size == time:
    return _nats(model, params, x_btd, targets_bt, mask_bt), count

  def split(a):
    # A chunk takes every (time // size)-th position: batch and time stay sharded as they are, none is gathered.
    return None if a is None else jnp.moveaxis(a.reshape(batch, size, time // size, *a.shape[2:]), 2, 0)

  return _chunked(model, params, split(x_btd), split(targets_bt), split(mask_bt)), count


def _nats(model: Model, params: Any, x_btd: jax.Array, targets_bt: jax.Array, mask_bt: jax.Array | None) -> jax.Array:
  logits_btv = decoder.logits(model, params, x_btd).astype(jnp.float32)
  # The target's logit as a masked sum, which each shard of the vocabulary does for its part: a gather would need all.
  is_target_btv = jax.lax.broadcasted_iota(jnp.int32, logits_btv.shape, 2) == targets_bt[..., None]
  target_bt = jnp.where(is_target_btv, logits_btv, 0.0).sum(-1)
  nats_bt = jax.nn.logsumexp(logits_btv, axis=-1) - target_bt
  return nats_bt.sum() if mask_bt is None else jnp.where(mask_bt > 0, nats_bt, 0.0).sum()


@functools.cache
def _reads(model: Model) -> tuple[bool, ...]:
  """Which parameters, in flattened order, the logits depend on: only these have a gradient to add up over chunks."""
  _, params = decoder.abstract(model)
  x_btd = jax.ShapeDtypeStruct((1, 1, model.width), jnp.float32)
  closed = jax.make_jaxpr(functools.partial(decoder.logits, model))(params, x_btd)
  read = {id(v) for equation in closed.jaxpr.eqns for v in equation.invars}
  return tuple(id(v) in read for v in closed.jaxpr.invars[:-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(model, params, x_cbtd, targets_cbt, mask_cbt):
  def add(nats, chunk):
    return nats + _nats(model, params, *chunk), None

  return jax.lax.scan(add, jnp.float32(0), (x_cbtd, targets_cbt, mask_cbt))[0]


def _chunked_forward(model, params, x_cbtd, targets_cbt, mask_cbt):
  leaves, structure = jax.tree.flatten(params)
  reads = _reads(model)

  def chunk_nats(used, x_btd, targets_bt, mask_bt):
    given = iter(used)
    whole = [next(given) if read else leaf for leaf, read in zip(leaves, reads, strict=True)]
    return _nats(model, jax.tree.unflatten(structure, whole), x_btd, targets_bt, mask_bt)

  used = [leaf for leaf, read in zip(leaves, reads, strict=True) if read]

  def add(carry, chunk):
    nats, gradient = carry
    more, (used_gradient, x_gradient) = jax.value_and_grad(chunk_nats, argnums=(0, 1))(used, *chunk)
    return (nats + more, jax.tree.map(jnp.add, gradient, used_gradient)), x_gradient

  start = (jnp.float32(0), jax.tree.map(jnp.zeros_like, used))
  (nats, gradient), x_gradient_cbtd = jax.lax.scan(add, start, (x_cbtd, targets_cbt, mask_cbt))
  return nats, (gradient, x_gradient_cbtd)


def _chunked_backward(model, saved, cotangent):
  gradient, x_gradient_cbtd = saved
  structure = jax.tree.structure(decoder.abstract(model)[1])
  given = iter(gradient)
  scaled = [next(given) * cotangent if read else None for read in _reads(model)]
  return jax.tree.unflatten(structure, scaled), (x_gradient_cbtd * cotangent).astype(x_gradient_cbtd.dtype), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
