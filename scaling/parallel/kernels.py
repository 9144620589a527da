"""Attention: one function, an implementation per platform.

reference  the whole matrix of scores, in float32 or float64; any platform, any feature
blocks     static causal blocks of queries, the fastest measured on CPU
cudnn      flash attention of cuDNN, in bfloat16 or float16; NVIDIA GPUs
splash     Pallas flash attention that skips empty blocks of the mask; TPUs
ring       blocks over a sequence that is split over the mesh axis `context`; any platform, any feature
"""

from typing import Any

import jax

from scaling.errors import UserError, unknown
from scaling.parallel import attention_blocks, attention_cudnn, attention_reference, attention_splash, mesh, ring

IMPLEMENTATIONS: dict[str, Any] = {
  'reference': attention_reference.reference,
  'blocks': attention_blocks.blocks,
  'cudnn': attention_cudnn.cudnn,
  'splash': attention_splash.splash,
  'ring': ring.ring,
}


def target_platform() -> str:
  """The platform being compiled for: that of the active mesh (which may not be here), or the default one."""
  active = mesh.active()
  name = active.devices.flat[0].platform if active is not None else jax.default_backend()
  return {'cuda': 'gpu', 'rocm': 'gpu'}.get(name, name)


_PLATFORM = {'cudnn': 'gpu', 'splash': 'tpu'}  # of implementations that run on one platform alone


def _automatic(q_bthd, causal, window, segments_bt, softcap, alibi) -> str:
  """The fastest implementation on the platform compiled for that has all that is asked."""
  platform = target_platform()
  if mesh.axis_size(mesh.active(), ring.AXIS) > 1:
    return 'ring'
  if platform == 'tpu':
    return 'reference' if attention_splash.unsupported(q_bthd.dtype, alibi) else 'splash'
  if platform == 'gpu':
    masked = segments_bt is not None or (window is not None and not causal)
    _, time, _, size = q_bthd.shape
    reason = attention_cudnn.unsupported(q_bthd.dtype, size, time, masked=masked, softcap=softcap, alibi=alibi)
    return 'reference' if reason else 'cudnn'
  return 'blocks' if platform == 'cpu' else 'reference'


def attention(
  q_bthd: jax.Array,
  k_bskd: jax.Array,
  v_bskd: jax.Array,
  *,
  causal: bool = True,
  window: int | None = None,
  segments_bt: jax.Array | None = None,
  positions_bt: jax.Array | None = None,
  softcap: float | None = None,
  alibi: bool = False,
  implementation: str = 'auto',
) -> jax.Array:
  """Softmax attention with scores q.k / sqrt(head size).

  Args:
    q_bthd: queries [batch, time, heads, head size].
    k_bskd: keys [batch, time, key-value heads, head size]; their heads divide those of the queries.
    v_bskd: values, shaped as the keys.
    causal: a query sees no later position.
    window: a query sees this many last positions, itself included.
    segments_bt: document number of each position [batch, time]; attention stays inside a document.
    positions_bt: place of each array index in the sequence [batch or 1, time], for the ring alone, which takes any
      order; the others take the order of the array.
    softcap: scores become softcap tanh(scores / softcap) (Gemma 2, arXiv:2408.00118, section 2).
    alibi: a linear bias with distance per head (arXiv:2108.12409).
    implementation: a name in IMPLEMENTATIONS, or 'auto'.

  Returns:
    [batch, time, heads, head size] in the dtype of the queries.

  Raises:
    UserError: unknown implementation, or one that lacks what is asked.
  """
  if implementation == 'auto':
    implementation = _automatic(q_bthd, causal, window, segments_bt, softcap, alibi)
  if implementation not in IMPLEMENTATIONS:
    raise unknown('attention implementation', implementation, ['auto', *IMPLEMENTATIONS])
  platform, needed = target_platform(), _PLATFORM.get(implementation)
  if needed not in (None, platform):
    raise UserError(f'attention={implementation} runs on {needed} and this program is for {platform}: take auto')
  heads, kv_heads = q_bthd.shape[2], k_bskd.shape[2]
  if heads % kv_heads:
    raise UserError(f'{heads} query heads cannot share {kv_heads} key-value heads: the second must divide the first')
  options = {'causal': causal, 'window': window, 'segments_bt': segments_bt, 'softcap': softcap, 'alibi': alibi}
  if implementation == 'ring':
    options['positions_bt'] = positions_bt
  return IMPLEMENTATIONS[implementation](q_bthd, k_bskd, v_bskd, **options)
