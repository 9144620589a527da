"""Attention on NVIDIA GPUs: cuDNN's flash kernels through `jax.nn.dot_product_attention`."""

import jax
import jax.numpy as jnp

from scaling.errors import UserError
from scaling.parallel.attention_mesh import per_device
from scaling.parallel.attention_reference import visible

DTYPES = (jnp.bfloat16, jnp.float16)


def unsupported(
  dtype: jax.typing.DTypeLike, head_size: int, time: int, *, masked: bool, softcap: float | None, alibi: bool
) -> str | None:
  """Why cuDNN cannot do it, in one line; None where it can.

  masked: documents, or a window without causality, which go in as an array. The limits are those that JAX 0.10.2
  states for cuDNN 9 and Hopper GPUs; it refuses heads beyond 128 on older ones by itself.
  """
  if jnp.dtype(dtype) not in DTYPES:
    return f'cuDNN attention computes in bfloat16 or float16, not {jnp.dtype(dtype)}: set model.dtype=bfloat16'
  if softcap is not None:
    return f'cuDNN attention has no soft cap (model.attention_softcap={softcap}): take attention=reference'
  if alibi:
    return 'cuDNN attention has no linear biases (ALiBi): take attention=reference, or model.positions=rotary'
  if head_size % 8 or head_size > 256:
    return f'cuDNN attention wants a head size that is a multiple of 8 up to 256, not {head_size}'
  if masked and time % 2:
    return f'cuDNN attention under a document mask wants an even sequence length, not {time}'
  return None


def cudnn(q_bthd, k_bskd, v_bskd, *, causal, window, segments_bt, softcap, alibi):
  """As `kernels.attention`, for NVIDIA GPUs.

  Causal masks and windows cost no memory. A document mask becomes an additive array [batch, 1, time, time] in the
  dtype of the queries, which all heads share: no scores are kept, but the mask is.

  Raises:
    UserError: what `unsupported` says, or what JAX says of the GPU.
  """
  time = q_bthd.shape[1]
  masked = segments_bt is not None or (window is not None and not causal)
  reason = unsupported(q_bthd.dtype, q_bthd.shape[3], time, masked=masked, softcap=softcap, alibi=alibi)
  if reason:
    raise UserError(reason)

  def local(q_bthd, k_bskd, v_bskd, segments_bt):
    mask = None
    if masked:
      positions_t, positions_s = jnp.arange(time), jnp.arange(k_bskd.shape[1])
      mask = visible(positions_t, positions_s, causal, window)[None, None]
      if segments_bt is not None:
        mask = mask & (segments_bt[:, None, :, None] == segments_bt[:, None, None, :])
    try:
      return jax.nn.dot_product_attention(
        q_bthd,
        k_bskd,
        v_bskd,
        mask=mask,
        is_causal=causal,
        local_window_size=None if window is None or masked else (window - 1, 0),
        implementation='cudnn',
      )
    except NotImplementedError as error:
      raise UserError(f'cuDNN attention on this GPU: {error}'.rstrip('.') + ': take attention=reference') from None

  return per_device(local, q_bthd, k_bskd, v_bskd, segments_bt)
