"""Attention as the formula says it, with the whole matrix of scores: the yardstick of every kernel."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def alibi_slopes(heads: int) -> np.ndarray:
  """The slope of each head's linear bias (ALiBi, arXiv:2108.12409, section 3).

  A geometric sequence from 2^(-8/n) for n heads, n a power of two; other counts take the sequence of the next
  smaller power, then every other term of that of the next larger one.
  """
  power = 2 ** math.floor(math.log2(heads))
  slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
  slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
  return np.asarray(slopes)


def visible(query_t: jax.Array, key_s: jax.Array, causal: bool, window: int | None) -> jax.Array:
  """Which keys each query sees, from their positions: [T, S] booleans."""
  distance_ts = query_t[:, None] - key_s[None, :]
  mask_ts = jnp.ones(distance_ts.shape, bool)
  if causal:
    mask_ts &= distance_ts >= 0
  if window is not None:
    mask_ts &= distance_ts < window
    if not causal:
      mask_ts &= distance_ts > -window
  return mask_ts


def reference(q_bthd, k_bskd, v_bskd, *, causal, window, segments_bt, softcap, alibi):
  """Softmax attention in float32, or in float64 for float64 inputs. Shapes as `kernels.attention`."""
  b, t, h, d = q_bthd.shape
  s, kv = k_bskd.shape[1:3]
  dtype = jnp.promote_types(q_bthd.dtype, jnp.float32)
  q_btkgd = q_bthd.reshape(b, t, kv, h // kv, d).astype(dtype)
  scores_bkgts = jnp.einsum('btkgd,bskd->bkgts', q_btkgd, k_bskd.astype(dtype)) / math.sqrt(d)
  if softcap is not None:
    scores_bkgts = softcap * jnp.tanh(scores_bkgts / softcap)
  positions_t, positions_s = jnp.arange(t), jnp.arange(s)
  if alibi:
    slopes_kg = jnp.asarray(alibi_slopes(h), dtype).reshape(kv, h // kv)
    distance_ts = jnp.abs(positions_t[:, None] - positions_s[None, :]).astype(dtype)
    scores_bkgts -= slopes_kg[:, :, None, None] * distance_ts
  mask_bts = visible(positions_t, positions_s, causal, window)[None]
  if segments_bt is not None:
    mask_bts = mask_bts & (segments_bt[:, :, None] == segments_bt[:, None, :])
  scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, -jnp.inf)
  weights_bkgts = jax.nn.softmax(scores_bkgts, axis=-1)
  out_btkgd = jnp.einsum('bkgts,bskd->btkgd', weights_bkgts, v_bskd.astype(dtype))
  return out_btkgd.reshape(b, t, h, d).astype(q_bthd.dtype)
