"""Attention in static blocks of queries: each block meets only the keys that it can see. Made for CPU."""

import math

import jax
import jax.numpy as jnp

from scaling.parallel.attention_reference import alibi_slopes, visible

BLOCK = 64  # queries


def blocks(q_bthd, k_bskd, v_bskd, *, causal, window, segments_bt, softcap, alibi, block: int = BLOCK):
  """As `kernels.attention`; a Python loop over query blocks, so that the skipped work is skipped at compile time."""
  b, t, h, d = q_bthd.shape
  s, kv = k_bskd.shape[1:3]
  g = h // kv
  dtype = jnp.promote_types(q_bthd.dtype, jnp.float32)
  q_bkgtd = q_bthd.reshape(b, t, kv, g, d).transpose(0, 2, 3, 1, 4) / math.sqrt(d)
  k_bksd = k_bskd.transpose(0, 2, 1, 3)
  v_bksd = v_bskd.transpose(0, 2, 1, 3)
  slopes_kg = jnp.asarray(alibi_slopes(h), dtype).reshape(kv, g)
  outs = []
  for start in range(0, t, block):
    end = min(start + block, t)
    first = max(0, start - window + 1) if window is not None else 0
    last = end if causal else min(s, end + window - 1) if window is not None else s
    q = q_bkgtd[:, :, :, start:end]
    k, v = k_bksd[:, :, first:last], v_bksd[:, :, first:last]
    scores = jnp.einsum('bkgtd,bksd->bkgts', q, k, preferred_element_type=dtype)
    if softcap is not None:
      scores = softcap * jnp.tanh(scores / softcap)
    at_t, at_s = jnp.arange(start, end), jnp.arange(first, last)
    if alibi:
      scores -= slopes_kg[:, :, None, None] * jnp.abs(at_t[:, None] - at_s[None, :])
    mask = visible(at_t, at_s, causal, window)[None]
    if segments_bt is not None:
      mask = mask & (segments_bt[:, start:end, None] == segments_bt[:, None, first:last])
    # Adding a bias measured faster on CPU than selecting, and -1e30 never gives NaN.
    scores = scores + jnp.where(mask, 0, -1e30).astype(dtype)[:, None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    outs.append(jnp.einsum('bkgts,bksd->bkgtd', weights, v))
  out_bkgtd = jnp.concatenate(outs, axis=3)
  return out_bkgtd.transpose(0, 3, 1, 2, 4).reshape(b, t, h, d).astype(q_bthd.dtype)
