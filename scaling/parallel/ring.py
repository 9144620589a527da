"""Context-parallel attention: each device keeps its part of the queries while keys and values travel in a ring.

Ring attention (arXiv:2310.01889) with the online softmax of flash attention (arXiv:2205.14135, algorithm 1), in plain
JAX for any platform. Masks come from absolute positions, so any order of the sequence gives the same attention. In
the order of `order` each device holds an early and a late chunk, and a causal mask leaves all the same work, as blocks
of queries and keys that do not see each other are skipped.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling.errors import UserError
from scaling.parallel import mesh as meshes
from scaling.parallel.attention_mesh import per_device
from scaling.parallel.attention_reference import alibi_slopes

AXIS = 'context'
BLOCK = 512  # queries and keys whose scores exist at once, at most
_HIDDEN = -1e30  # a score that leaves nothing, and of which differences are still numbers


def order(time: int, devices: int) -> np.ndarray:
  """Which position of the sequence lies where: [time], so that tokens_bt[:, order] is what the devices hold in turn.

  Of 2n chunks device i of n holds chunks i and 2n-1-i. Where `time` has no such chunks, the order stays as it is.
  """
  if time % (2 * devices):
    return np.arange(time, dtype=np.int32)
  chunks = np.arange(time, dtype=np.int32).reshape(2 * devices, -1)
  return np.concatenate([chunks[[i, 2 * devices - 1 - i]].ravel() for i in range(devices)])


def balanced_order(time: int, implementation: str) -> np.ndarray | None:
  """`order` for the active mesh where this implementation of attention is the ring; None where order must be kept."""
  devices = meshes.axis_size(meshes.active(), AXIS)
  return order(time, devices) if devices > 1 and implementation in ('auto', 'ring') else None


@dataclasses.dataclass(frozen=True)
class _Options:
  devices: int
  causal: bool
  window: int | None
  softcap: float | None
  block: int
  scale: float


def ring(q_bthd, k_bskd, v_bskd, *, causal, window, segments_bt, softcap, alibi, positions_bt=None):
  """As `kernels.attention`, over the context axis of the active mesh; all of its features.

  positions_bt: the place of each array index in the sequence, [batch or 1, time]; None: 0..time-1.

  Raises:
    UserError: a sequence that the context axis does not divide; queries and keys of different lengths.
  """
  batch, time, heads, size = q_bthd.shape
  devices = meshes.axis_size(meshes.active(), AXIS)
  if k_bskd.shape[1] != time:
    raise UserError(f'ring attention wants as many keys as queries, and got {k_bskd.shape[1]} for {time}')
  if time % devices:
    raise UserError(
      f'a sequence of {time} does not divide over context={devices}: take a multiple of {2 * devices}, '
      f'for instance {-(-time // (2 * devices)) * 2 * devices}'
    )
  local_time = time // devices
  # At least two blocks a device, as its two chunks differ in what they see.
  limit = min(BLOCK, max(local_time // 2, 1))
  block = next(n for n in range(limit, 0, -1) if local_time % n == 0)
  options = _Options(devices, causal, window, softcap, block, 1 / math.sqrt(size))
  if positions_bt is None:
    positions_bt = jnp.arange(time, dtype=jnp.int32)[None]
  if segments_bt is not None:
    segments_bt = jnp.broadcast_to(segments_bt, (batch, time))

  def local(q_bthd, k_bskd, v_bskd, positions_bt, segments_bt):
    slopes_h = None
    if alibi:
      slopes_h = jnp.asarray(alibi_slopes(heads), jnp.promote_types(q_bthd.dtype, jnp.float32))
      if q_bthd.shape[2] < heads:
        first = jax.lax.axis_index(meshes.TENSOR) * q_bthd.shape[2]
        slopes_h = jax.lax.dynamic_slice_in_dim(slopes_h, first, q_bthd.shape[2])
    return _ring(options, q_bthd, k_bskd, v_bskd, positions_bt, segments_bt, slopes_h)

  return per_device(local, q_bthd, k_bskd, v_bskd, positions_bt, segments_bt, time=AXIS if devices > 1 else None)


def _blocked(x: jax.Array | None, block: int) -> jax.Array | None:
  """[b, t, ...] to [t / block, b, block, ...]."""
  if x is None:
    return None
  return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)


def _whole(x: jax.Array) -> jax.Array:
  """The inverse of `_blocked`."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _pass_on(x: Any, options: _Options) -> Any:
  if options.devices == 1:
    return x
  pairs = [(i, (i + 1) % options.devices) for i in range(options.devices)]
  return jax.tree.map(lambda a: jax.lax.ppermute(a, AXIS, pairs), x)


def _may_see(options: _Options, at_q: jax.Array, at_s: jax.Array) -> jax.Array:
  """Whether any of these queries may see any of these keys, from the extremes of their positions."""
  seen = jnp.bool_(True)
  if options.causal:
    seen &= at_q.max() >= at_s.min()
  if options.window is not None:
    seen &= at_q.min() - at_s.max() < options.window
    if not options.causal:
      seen &= at_s.min() - at_q.max() < options.window
  return seen


def _scores(options, q_btkgd, k_bskd, at_q, at_s, segments_q, segments_s, slopes_kg):
  """Scores [b, k, g, t, s] of one block after soft cap and bias; the capped ones before the bias; the mask [b,1,1,t,s]."""
  dtype = jnp.promote_types(q_btkgd.dtype, jnp.float32)
  scores = jnp.einsum('btkgd,bskd->bkgts', q_btkgd, k_bskd, preferred_element_type=dtype) * options.scale
  if options.softcap is not None:
    scores = options.softcap * jnp.tanh(scores / options.softcap)
  capped = scores
  distance_bts = at_q[:, :, None] - at_s[:, None, :]
  if slopes_kg is not None:
    scores = scores - slopes_kg[:, :, None, None] * jnp.abs(distance_bts)[:, None, None].astype(dtype)
  mask = jnp.ones(distance_bts.shape, bool)
  if options.causal:
    mask &= distance_bts >= 0
  if options.window is not None:
    mask &= distance_bts < options.window
    if not options.causal:
      mask &= distance_bts > -options.window
  if segments_q is not None:
    mask = mask & (segments_q[:, :, None] == segments_s[:, None, :])
  return scores, capped, mask[:, None, None]


def _split(options, q_bthd, kv_heads, *others_bt):
  """Queries as blocks [n, b, block, k, g, d], and what goes with them."""
  b, t, h, d = q_bthd.shape
  q = q_bthd.reshape(b, t, kv_heads, h // kv_heads, d)
  return tuple(_blocked(x, options.block) for x in (q, *others_bt))


def _forward(options, q_bthd, k_bskd, v_bskd, positions_bt, segments_bt, slopes_h):
  kv_heads = k_bskd.shape[2]
  slopes_kg = None if slopes_h is None else slopes_h.reshape(kv_heads, -1)
  queries = _split(options, q_bthd, kv_heads, positions_bt, segments_bt)
  dtype = jnp.promote_types(q_bthd.dtype, jnp.float32)
  n, b, block, _, groups, size = queries[0].shape
  row = (n, b, kv_heads, groups, block)
  state = (jnp.full(row, _HIDDEN, dtype), jnp.zeros(row, dtype), jnp.zeros((*row, size), dtype))

  def update(state, query, key):
    top, total, out = state
    q, at_q, segments_q = query
    k, v, at_s, segments_s = key
    scores, _, mask = _scores(options, q, k, at_q, at_s, segments_q, segments_s, slopes_kg)
    new_top = jnp.maximum(top, jnp.where(mask, scores, _HIDDEN).max(-1))
    weights = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0)
    fade = jnp.exp(top - new_top)
    more = jnp.einsum('bkgts,bskd->bkgtd', weights.astype(v.dtype), v, preferred_element_type=dtype)
    return new_top, total * fade + weights.sum(-1), out * fade[..., None] + more

  def attend(state, keys):
    keys = tuple(_blocked(x, options.block) for x in keys)

    def per_query(_, both):
      query, state = both

      def per_key(state, key):
        seen = _may_see(options, query[1], key[2])
        return jax.lax.cond(seen, update, lambda state, *_: state, state, query, key), None

      return None, jax.lax.scan(per_key, state, keys)[0]

    return jax.lax.scan(per_query, None, (queries, state))[1]

  def turn(carry, _):
    state, keys = carry
    # Sent on before they are used, so that the transfer may run beside the work.
    following = _pass_on(keys, options)
    return (attend(state, keys), following), None

  keys = (k_bskd, v_bskd, positions_bt, segments_bt)
  (state, keys), _ = jax.lax.scan(turn, (state, keys), None, length=options.devices - 1)
  top, total, out = attend(state, keys)
  out_bthd = _whole((out / total[..., None]).transpose(0, 1, 4, 2, 3, 5)).reshape(q_bthd.shape)
  return out_bthd.astype(q_bthd.dtype), top + jnp.log(total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(options, q_bthd, k_bskd, v_bskd, positions_bt, segments_bt, slopes_h):
  return _forward(options, q_bthd, k_bskd, v_bskd, positions_bt, segments_bt, slopes_h)[0]


def _ring_forward(options, *arguments):
  out_bthd, row_sums = _forward(options, *arguments)
  return out_bthd, (arguments, out_bthd, row_sums)


def _ring_backward(options, saved, d_out_bthd):
  """The ring once more: the scores are computed again, and the gradients of keys and values travel with them."""
  (q_bthd, k_bskd, v_bskd, positions_bt, segments_bt, slopes_h), out_bthd, row_sums = saved
  kv_heads = k_bskd.shape[2]
  slopes_kg = None if slopes_h is None else slopes_h.reshape(kv_heads, -1)
  dtype = jnp.promote_types(q_bthd.dtype, jnp.float32)
  inner_bth = (out_bthd.astype(dtype) * d_out_bthd.astype(dtype)).sum(-1)
  q, at_q, segments_q = _split(options, q_bthd, kv_heads, positions_bt, segments_bt)
  (d_out,) = _split(options, d_out_bthd, kv_heads)
  n, b, block, _, groups, _ = q.shape
  inner = _blocked(inner_bth.reshape(b, -1, kv_heads, groups), block).transpose(0, 1, 3, 4, 2)
  queries = (q, at_q, segments_q, d_out, inner, row_sums)

  def gradients(sums, query, key):
    dq, dk, dv = sums
    q, at_q, segments_q, d_out, inner, row_sums = query
    k, v, at_s, segments_s = key
    scores, capped, mask = _scores(options, q, k, at_q, at_s, segments_q, segments_s, slopes_kg)
    weights = jnp.where(mask, jnp.exp(scores - row_sums[..., None]), 0)
    dv += jnp.einsum('bkgts,btkgd->bskd', weights.astype(d_out.dtype), d_out, preferred_element_type=dtype)
    d_weights = jnp.einsum('btkgd,bskd->bkgts', d_out, v, preferred_element_type=dtype)
    d_scores = weights * (d_weights - inner[..., None]) * options.scale
    if options.softcap is not None:
      d_scores *= 1 - (capped / options.softcap) ** 2
    d_scores = d_scores.astype(q.dtype)
    dq += jnp.einsum('bkgts,bskd->btkgd', d_scores, k, preferred_element_type=dtype)
    dk += jnp.einsum('bkgts,btkgd->bskd', d_scores, q, preferred_element_type=dtype)
    return dq, dk, dv

  def attend(dq, keys, d_keys):
    keys = tuple(_blocked(x, block) for x in keys)

    def per_query(d_keys, both):
      query, dq = both

      def per_key(dq, both):
        key, (dk, dv) = both
        seen = _may_see(options, query[1], key[2])
        dq, dk, dv = jax.lax.cond(seen, gradients, lambda sums, *_: sums, (dq, dk, dv), query, key)
        return dq, (dk, dv)

      dq, d_keys = jax.lax.scan(per_key, dq, (keys, d_keys))
      return d_keys, dq

    d_keys, dq = jax.lax.scan(per_query, d_keys, (queries, dq))
    return dq, d_keys

  def turn(carry, _):
    dq, keys, d_keys = carry
    following = _pass_on(keys, options)
    dq, d_keys = attend(dq, keys, d_keys)
    return (dq, following, _pass_on(d_keys, options)), None

  zeros = jnp.zeros((n, *k_bskd.shape[:1], block, *k_bskd.shape[2:]), dtype)
  start = (jnp.zeros(q.shape, dtype), (k_bskd, v_bskd, positions_bt, segments_bt), (zeros, zeros))
  (dq, _, (dk, dv)), _ = jax.lax.scan(turn, start, None, length=options.devices)
  dq_bthd = _whole(dq).reshape(q_bthd.shape).astype(q_bthd.dtype)
  dk_bskd, dv_bskd = _whole(dk).astype(k_bskd.dtype), _whole(dv).astype(v_bskd.dtype)
  return dq_bthd, dk_bskd, dv_bskd, None, None, None


_ring.defvjp(_ring_forward, _ring_backward)
