"""Attention in static blocks of queries: each meets only the keys that it can see. Made for CPU.

The blocks are a Python loop, so that masked work is skipped at compile time. The backward pass computes the weights
again from the saved log-sum-exp (FlashAttention, arXiv:2205.14135, algorithm 4): memory grows with the sequence and
not with its square. On CPU the layouts decide: gradients of keys and values are computed transposed, as
[head size, keys], because a matmul that contracts the rows of its left operand runs at half speed there.

Shapes: b batch, k key and value heads, g query heads of each, t queries, s keys, d head size.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scaling.parallel import remat
from scaling.parallel.attention_reference import alibi_slopes, visible

BLOCK = 64  # queries; 32 and 128 measured no better
MOST_BLOCKS = 16  # longer sequences take longer blocks, to keep the program small
HIDDEN = -1e30  # added to the scores of hidden keys: finite, so that no difference of two is NaN


class Mask(NamedTuple):
  """What is static of a call."""

  causal: bool
  window: int | None
  softcap: float | None
  alibi: bool
  block: int


def blocks(q_bthd, k_bskd, v_bskd, *, causal, window, segments_bt, softcap, alibi, block: int | None = None):
  """As `kernels.attention`, for as many keys as queries. `block`: queries per block, None: chosen by the length."""
  b, t, h, d = q_bthd.shape
  kv = k_bskd.shape[2]
  block = block or max(BLOCK, -(-t // MOST_BLOCKS))
  q_btkgd = q_bthd.reshape(b, t, kv, h // kv, d)
  return _attention(q_btkgd, k_bskd, v_bskd, segments_bt, Mask(causal, window, softcap, alibi, block)).reshape(
    q_bthd.shape
  )


def _ranges(mask: Mask, t: int):
  """For each block: its queries and the keys that any of them sees, as slices."""
  for start in range(0, t, mask.block):
    end = min(start + mask.block, t)
    first = max(0, start - mask.window + 1) if mask.window else 0
    last = end if mask.causal else min(t, end + mask.window - 1) if mask.window else t
    yield slice(start, end), slice(first, last)


def _scores(q_bkgtd, k_bksd, segments_bt, mask: Mask, queries: slice, keys: slice):
  """Masked scores of a block in float32 or wider, and the derivative of the soft cap (1 without one)."""
  dtype = jnp.promote_types(q_bkgtd.dtype, jnp.float32)
  q_bkgtd, k_bksd = q_bkgtd[..., queries, :], k_bksd[..., keys, :]
  scores_bkgts = jnp.einsum('bkgtd,bksd->bkgts', q_bkgtd, k_bksd, preferred_element_type=dtype)
  slope = 1.0
  if mask.softcap is not None:
    capped = jnp.tanh(scores_bkgts / mask.softcap)
    scores_bkgts, slope = mask.softcap * capped, 1 - capped * capped
  at_t, at_s = (jnp.arange(part.start, part.stop) for part in (queries, keys))
  if mask.alibi:
    kv, g = q_bkgtd.shape[1:3]
    slopes_kg = jnp.asarray(alibi_slopes(kv * g), dtype).reshape(kv, g, 1, 1)
    scores_bkgts -= slopes_kg * jnp.abs(at_t[:, None] - at_s[None, :])
  seen_bts = visible(at_t, at_s, mask.causal, mask.window)[None]
  if segments_bt is not None:
    seen_bts = seen_bts & (segments_bt[:, queries, None] == segments_bt[:, None, keys])
  return scores_bkgts + jnp.where(seen_bts, 0, HIDDEN).astype(dtype)[:, None, None], slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q_btkgd, k_bskd, v_bskd, segments_bt, mask: Mask):
  return _forward(q_btkgd, k_bskd, v_bskd, segments_bt, mask)[0]


def _scaled(q_btkgd):
  return q_btkgd.transpose(0, 2, 3, 1, 4) / math.sqrt(q_btkgd.shape[-1])


def _forward(q_btkgd, k_bskd, v_bskd, segments_bt, mask: Mask):
  q_bkgtd, k_bksd, v_bksd = _scaled(q_btkgd), k_bskd.transpose(0, 2, 1, 3), v_bskd.transpose(0, 2, 1, 3)
  outs, log_sums = [], []
  for queries, keys in _ranges(mask, q_bkgtd.shape[3]):
    scores_bkgts, _ = _scores(q_bkgtd, k_bksd, segments_bt, mask, queries, keys)
    top = scores_bkgts.max(-1, keepdims=True)
    weights_bkgts = jnp.exp(scores_bkgts - top)
    total = weights_bkgts.sum(-1, keepdims=True)
    out = jnp.einsum('bkgts,bksd->bkgtd', weights_bkgts.astype(v_bksd.dtype), v_bksd[:, :, keys])
    outs.append(out / total.astype(out.dtype))
    log_sums.append(top + jnp.log(total))
  out_btkgd = jnp.concatenate(outs, axis=3).transpose(0, 3, 1, 2, 4).astype(q_btkgd.dtype)
  # Tagged here too, so that a policy that keeps the output of attention keeps all that its backward pass needs.
  out_btkgd = remat.tag(out_btkgd, 'attention_out')
  log_sum_bkgt1 = remat.tag(jnp.concatenate(log_sums, axis=3), 'attention_out')
  return out_btkgd, (q_btkgd, k_bskd, v_bskd, segments_bt, out_btkgd, log_sum_bkgt1)


def _backward(mask: Mask, saved, grad_btkgd):
  q_btkgd, k_bskd, v_bskd, segments_bt, out_btkgd, log_sum_bkgt1 = saved
  dtype = log_sum_bkgt1.dtype
  q_bkgtd, k_bksd, v_bksd = _scaled(q_btkgd), k_bskd.transpose(0, 2, 1, 3), v_bskd.transpose(0, 2, 1, 3)
  q_bkdgt = q_btkgd.transpose(0, 2, 4, 3, 1) / math.sqrt(q_btkgd.shape[-1])
  grad_bkgtd, grad_bkdgt = grad_btkgd.transpose(0, 2, 3, 1, 4), grad_btkgd.transpose(0, 2, 4, 3, 1)
  # The row sums of weights times their gradients, from the output alone.
  rows_btkg = jnp.einsum('btkgd,btkgd->btkg', grad_btkgd, out_btkgd, preferred_element_type=dtype)
  rows_bkgt1 = rows_btkg.transpose(0, 2, 3, 1)[..., None]
  ranges = list(_ranges(mask, q_bkgtd.shape[3]))
  q_grads, k_grads, v_grads = [], [], []
  for queries, keys in ranges:
    scores_bkgts, slope = _scores(q_bkgtd, k_bksd, segments_bt, mask, queries, keys)
    weights_bkgts = jnp.exp(scores_bkgts - log_sum_bkgt1[..., queries, :])
    raw_bkgts = jnp.einsum(
      'bkgtd,bksd->bkgts', grad_bkgtd[..., queries, :], v_bksd[:, :, keys], preferred_element_type=dtype
    )
    raw_bkgts = (weights_bkgts * (raw_bkgts - rows_bkgt1[..., queries, :]) * slope).astype(q_btkgd.dtype)
    weights_bkgts = weights_bkgts.astype(q_btkgd.dtype)
    q_grads.append(jnp.einsum('bkgts,bksd->bkgtd', raw_bkgts, k_bksd[:, :, keys]))
    k_grads.append(jnp.einsum('bkdgt,bkgts->bkds', q_bkdgt[..., queries], raw_bkgts, preferred_element_type=dtype))
    v_grads.append(
      jnp.einsum('bkdgt,bkgts->bkds', grad_bkdgt[..., queries], weights_bkgts, preferred_element_type=dtype)
    )
  q_grad_btkgd = jnp.concatenate(q_grads, axis=3).transpose(0, 3, 1, 2, 4) / math.sqrt(q_btkgd.shape[-1])
  keys = [keys for _, keys in ranges]
  k_grad_bskd, v_grad_bskd = (_sum_over_blocks(grads, keys) for grads in (k_grads, v_grads))
  grads = q_grad_btkgd.astype(q_btkgd.dtype), k_grad_bskd.astype(k_bskd.dtype), v_grad_bskd.astype(v_bskd.dtype)
  return *grads, None


def _sum_over_blocks(grads_bkds, keys: list[slice]):
  """Gradients of keys from the blocks of queries that saw them: [b, s, k, d]."""
  edges = sorted({edge for part in keys for edge in (part.start, part.stop)})
  pieces = []
  for start, end in itertools.pairwise(edges):
    seen = [
      grad[..., start - part.start : end - part.start]
      for grad, part in zip(grads_bkds, keys, strict=True)
      if part.start <= start and end <= part.stop
    ]
    pieces.append(functools.reduce(jnp.add, seen))
  return jnp.concatenate(pieces, axis=3).transpose(0, 3, 1, 2)


_attention.defvjp(_forward, _backward)
