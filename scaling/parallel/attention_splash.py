"""Attention on TPU: the Pallas splash kernels that come with JAX, on each device's rows and heads.

Blocks of the mask that hold nothing are skipped, forward and backward; neither scores nor masks exist in main memory.
The products with float32 queries and keys run at the TPU's default precision, in bfloat16 passes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from scaling.errors import UserError
from scaling.parallel.attention_mesh import per_device

LANES = 128  # the kernels' blocks are multiples of it
BLOCK = 512  # the largest block of queries or keys; with heads beyond 128 half of it, for the sake of VMEM


def unsupported(dtype: jax.typing.DTypeLike, alibi: bool) -> str | None:
  """Why the kernels cannot do it, in one line; None where they can."""
  if alibi:
    return 'splash attention has no linear biases (ALiBi): take attention=reference, or model.positions=rotary'
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16, jnp.float32):
    return f'splash attention does not compute in {jnp.dtype(dtype)}: take bfloat16 or float32, or attention=reference'
  return None


def splash(q_bthd, k_bskd, v_bskd, *, causal, window, segments_bt, softcap, alibi, interpret: bool = False):
  """As `kernels.attention`, for TPU. Any sequence length: it is padded to a multiple of 128 and cut again.

  interpret: runs the kernels' steps in plain JAX, for tests without a TPU.

  Raises:
    UserError: ALiBi, a dtype that the kernels lack, queries and keys of different lengths.
  """
  reason = unsupported(q_bthd.dtype, alibi)
  if reason:
    raise UserError(reason)
  time = q_bthd.shape[1]
  if k_bskd.shape[1] != time:
    raise UserError(f'splash attention wants as many keys as queries, and got {k_bskd.shape[1]} for {time}')
  padding = -time % LANES
  if padding:
    q_bthd, k_bskd, v_bskd = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_bthd, k_bskd, v_bskd))
    # A causal mask hides the padding, as it comes last.
    if segments_bt is None and not causal:
      segments_bt = jnp.zeros((1, time), jnp.int32)
    if segments_bt is not None:
      segments_bt = jnp.pad(segments_bt, ((0, 0), (0, padding)), constant_values=-1)
  if segments_bt is not None:
    segments_bt = jnp.broadcast_to(segments_bt, (q_bthd.shape[0], time + padding))

  def local(q_bthd, k_bskd, v_bskd, segments_bt):
    _, padded, heads, size = q_bthd.shape
    kernel = _kernel(heads, padded, size, causal, window, softcap, interpret)
    scaled = (q_bthd.astype(jnp.float32) / math.sqrt(size)).astype(q_bthd.dtype)
    arrays = (scaled.swapaxes(1, 2), k_bskd.swapaxes(1, 2), v_bskd.swapaxes(1, 2))
    if segments_bt is None:
      out_bhtd = jax.vmap(kernel)(*arrays)
    else:
      out_bhtd = jax.vmap(lambda q, k, v, s: kernel(q, k, v, _segment_ids(s)))(*arrays, segments_bt)
    return out_bhtd.swapaxes(1, 2).astype(q_bthd.dtype)

  return per_device(local, q_bthd, k_bskd, v_bskd, segments_bt)[:, :time]


def block_size(time: int, head_size: int, window: int | None) -> int:
  """Queries and keys per block: a divisor of `time`, which is a multiple of 128.

  Large blocks keep the matrix unit busy; with a short window they would mostly hold what is masked.
  """
  limit = BLOCK if head_size <= 128 else BLOCK // 2
  if window is not None:
    limit = min(limit, max(LANES, -(-window // LANES) * LANES))
  return next(size for size in range(limit, 0, -LANES) if time % size == 0)


def _segment_ids(segments_t):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

  return kernels.SegmentIds(q=segments_t, kv=segments_t)


@functools.lru_cache(maxsize=64)
def _kernel(heads, time, head_size, causal, window, softcap, interpret):
  """The kernel for one mask and shape of heads; several query heads may share one of the keys."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  if window is not None:
    mask = masks.LocalMask((time, time), (window - 1, 0 if causal else window - 1), 0)
  else:
    mask = masks.CausalMask((time, time)) if causal else masks.FullMask((time, time))
  size = block_size(time, head_size, window)
  names = ('block_q', 'block_kv', 'block_q_dkv', 'block_kv_dkv', 'block_q_dq', 'block_kv_dq')
  with jax.ensure_compile_time_eval():
    kernel = kernels.make_splash_mha(
      masks.MultiHeadMask([mask] * heads),
      block_sizes=kernels.BlockSizes(**dict.fromkeys(names, size)),
      head_shards=1,
      q_seq_shards=1,
      attn_logits_soft_cap=softcap,
      interpret=interpret,
    )
  # As NumPy arrays, which lie on no device, the mask's tables serve programs for any.
  return jax.tree.map(np.asarray, kernel)
