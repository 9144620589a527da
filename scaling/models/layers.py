"""The parts of a block: norms, MLPs, rotary positions, attention.

Shapes: b batch, t time of queries, d width, h query heads, g key and value heads, k head size, f MLP width.
Weights are float32 and cast to the compute dtype where they are used; norms compute in float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from scaling import config
from scaling.models import axes
from scaling.parallel import kernels, mesh, remat
from scaling.parallel.linear import linear, normalize
from scaling.parallel.mesh import constrain


def compute_dtype(model: config.Model) -> jnp.dtype:
  """The dtype of matmuls and activations; `auto` is bfloat16 where the platform compiled for multiplies it fast."""
  if model.dtype == 'auto':
    return jnp.dtype('float32' if kernels.target_platform() == 'cpu' else 'bfloat16')
  return jnp.dtype(model.dtype)


class Norm(nnx.Module):
  """LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467) over the last axis."""

  def __init__(self, model: config.Model, size: int, kind: str | None = None):
    self.kind, self.eps = kind or model.norm, model.norm_eps
    self.scale = axes.param(None, (size,), ('norm',), axes.ones)
    if self.kind == 'layernorm' and model.bias:
      self.bias = axes.param(None, (size,), ('norm',), axes.zeros)

  def __call__(self, x: jax.Array) -> jax.Array:
    bias = self.bias[...] if hasattr(self, 'bias') else None
    return normalize(x, self.scale[...], bias, self.eps, centred=self.kind == 'layernorm')


class Mlp(nnx.Module):
  """GELU (tanh form, arXiv:1606.08415) or SwiGLU (arXiv:2002.05202, equation 6)."""

  def __init__(self, model: config.Model, keys: jax.Array):
    d, f = model.width, model.mlp_size
    std = axes.normal(model.init_std)
    self.kind = model.mlp
    if self.kind == 'swiglu':
      self.gate = axes.param(keys[0], (d, f), ('embed', 'mlp'), std)
    self.up = axes.param(keys[1], (d, f), ('embed', 'mlp'), std)
    self.down = axes.param(keys[2], (f, d), ('mlp', 'embed'), axes.normal(residual_std(model)))
    if model.bias:
      if self.kind == 'swiglu':
        self.gate_bias = axes.param(None, (f,), ('mlp',), axes.zeros)
      self.up_bias = axes.param(None, (f,), ('mlp',), axes.zeros)
      self.down_bias = axes.param(None, (d,), ('norm',), axes.zeros)

  def __call__(self, x_btd: jax.Array) -> jax.Array:
    up_btf = self._project(x_btd, 'up')
    if self.kind == 'swiglu':
      h_btf = jax.nn.silu(self._project(x_btd, 'gate')) * up_btf
    else:
      h_btf = jax.nn.gelu(up_btf, approximate=True)
    h_btf = remat.tag(constrain(h_btf, ('batch', 'sequence', 'mlp')), 'mlp_hidden')
    return self._project(h_btf, 'down')

  def _project(self, x: jax.Array, name: str) -> jax.Array:
    y = linear(x, getattr(self, name)[...].astype(x.dtype))
    if hasattr(self, f'{name}_bias'):
      y = y + getattr(self, f'{name}_bias')[...].astype(x.dtype)
    return y


PROJECTIONS = ('query', 'key', 'value')


class Attention(nnx.Module):
  """Causal attention with as many or fewer key and value heads as query heads (arXiv:2305.13245)."""

  def __init__(self, model: config.Model, keys: jax.Array):
    d, h, g, k = model.width, model.heads, model.kv_head_count, model.head_size
    std = axes.normal(model.init_std)
    self.model = model
    self.query = axes.param(keys[0], (d, h, k), ('embed', 'heads', 'head_dim'), std)
    self.key = axes.param(keys[1], (d, g, k), ('embed', 'kv_heads', 'head_dim'), std)
    self.value = axes.param(keys[2], (d, g, k), ('embed', 'kv_heads', 'head_dim'), std)
    self.out = axes.param(keys[3], (h, k, d), ('heads', 'head_dim', 'embed'), axes.normal(residual_std(model)))
    if model.bias:
      self.query_bias = axes.param(None, (h, k), ('heads', 'head_dim'), axes.zeros)
      self.key_bias = axes.param(None, (g, k), ('kv_heads', 'head_dim'), axes.zeros)
      self.value_bias = axes.param(None, (g, k), ('kv_heads', 'head_dim'), axes.zeros)
      self.out_bias = axes.param(None, (d,), ('norm',), axes.zeros)
    if model.qk_norm:  # arXiv:2302.05442, section 2, as RMSNorm over each head
      self.query_norm = Norm(model, k, 'rmsnorm')
      self.key_norm = Norm(model, k, 'rmsnorm')

  def __call__(
    self,
    x_btd: jax.Array,
    rotation: tuple[jax.Array, jax.Array] | None,
    segments_bt: jax.Array | None,
    window: int | None,
    implementation: str,
    positions_bt: jax.Array | None = None,
  ) -> jax.Array:
    q_bthk, k_btgk, v_btgk = self._together(x_btd) if _undivided_cpu() else map(self._heads, [x_btd] * 3, PROJECTIONS)
    if self.model.qk_norm:
      q_bthk, k_btgk = self.query_norm(q_bthk), self.key_norm(k_btgk)
    if rotation is not None:
      q_bthk, k_btgk = rotate(q_bthk, rotation), rotate(k_btgk, rotation)
    y_bthk = kernels.attention(
      constrain(q_bthk, ('batch', 'sequence', 'heads', 'head_dim')),
      constrain(k_btgk, ('batch', 'sequence', 'kv_heads', 'head_dim')),
      constrain(v_btgk, ('batch', 'sequence', 'kv_heads', 'head_dim')),
      causal=True,
      window=window,
      segments_bt=segments_bt,
      positions_bt=positions_bt,
      softcap=self.model.attention_softcap,
      alibi=self.model.positions == 'alibi',
      implementation=implementation,
    )
    y_bthk = remat.tag(constrain(y_bthk, ('batch', 'sequence', 'heads', 'head_dim')), 'attention_out')
    y_btd = linear(y_bthk, self.out[...].astype(x_btd.dtype), inputs=2)
    return y_btd + self.out_bias[...].astype(x_btd.dtype) if self.model.bias else y_btd

  def _heads(self, x_btd: jax.Array, name: str) -> jax.Array:
    y = linear(x_btd, getattr(self, name)[...].astype(x_btd.dtype))
    return y + getattr(self, f'{name}_bias')[...].astype(x_btd.dtype) if self.model.bias else y

  def _together(self, x_btd: jax.Array) -> list[jax.Array]:
    """Queries, keys and values by one product: on CPU three narrow ones, and their gradients, take far longer."""
    weights = [getattr(self, name)[...].astype(x_btd.dtype) for name in PROJECTIONS]
    y_btf = linear(x_btd, jnp.concatenate([w.reshape(w.shape[0], -1) for w in weights], 1))
    if self.model.bias:
      biases = [getattr(self, f'{name}_bias')[...].astype(x_btd.dtype).reshape(-1) for name in PROJECTIONS]
      y_btf = y_btf + jnp.concatenate(biases)
    ends = [sum(w[0].size for w in weights[: i + 1]) for i in range(2)]
    return [y.reshape(*y.shape[:-1], *w.shape[1:]) for y, w in zip(jnp.split(y_btf, ends, -1), weights, strict=True)]


def _undivided_cpu() -> bool:
  """Whether what is compiled runs on CPU with heads whole on each device, so that joining them moves nothing."""
  return kernels.target_platform() == 'cpu' and mesh.axis_size(mesh.active(), *mesh.TENSOR) == 1


def residual_std(model: config.Model) -> float:
  """The initial scale of what writes into the residual stream: 1/sqrt(2 layers) of the rest, as GPT-2, section 2.3."""
  return model.init_std / math.sqrt(2 * model.layers)


def rotation_angles(model: config.Model, positions_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines [b, t, 1, k/2] of rotary positions (arXiv:2104.09864, section 3.2.2), in float32."""
  half = model.head_size // 2
  frequency = model.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if (scaling := model.rope_scaling) is not None:
    # Long wavelengths are stretched by `factor`, short ones kept, and those between blended linearly.
    turns = scaling.original_context * frequency / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    frequency = frequency * (keep + (1 - keep) / scaling.factor)
  angle_bt1k = positions_bt[..., None, None].astype(jnp.float32) * frequency
  return jnp.cos(angle_bt1k), jnp.sin(angle_bt1k)


def rotate(x_bthk: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Turns the pairs (i, i + k/2) of each head, LLaMA's pairing as Hugging Face stores it."""
  cos, sin = rotation
  first, second = jnp.split(x_bthk.astype(jnp.float32), 2, -1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
  return turned.astype(x_bthk.dtype)
