"""Products with weights, and norms, in the forms that XLA's CPU compiler runs fast; elsewhere the plain ones."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from scaling.parallel.kernels import target_platform


def linear(x: jax.Array, w: jax.Array, inputs: int = 1, dtype: Any = None) -> jax.Array:
  """Contracts the last `inputs` dimensions of `x` with the first ones of `w`, which has the dtype of `x`.

  The other dimensions of `w` are the last of the result. `dtype`: of the result and its sums; None: as XLA takes it.
  """
  product = _cpu_product if target_platform() == 'cpu' else _product
  return product(x, w, inputs, dtype)


def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, centred: bool) -> jax.Array:
  """LayerNorm (`centred`) or RMSNorm over the last axis, in float32; the result has the dtype of `x`.

  scale, bias: [last axis], float32.
  """
  if target_platform() == 'cpu':
    return _cpu_normalize(x, scale, bias, eps, centred)
  y = x.astype(jnp.float32)
  if centred:
    y = y - y.mean(-1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps) * scale
  return (y if bias is None else y + bias).astype(x.dtype)


def _product(x: jax.Array, w: jax.Array, inputs: int, dtype: Any) -> jax.Array:
  return _contract(x, range(x.ndim - inputs, x.ndim), w, range(inputs), dtype)


def _contract(a: jax.Array, of_a: range, b: jax.Array, of_b: range, dtype: Any) -> jax.Array:
  return jax.lax.dot_general(a, b, ((tuple(of_a), tuple(of_b)), ((), ())), preferred_element_type=dtype)


# The gradient of `w` is a matmul over all positions. XLA's CPU compiler copies its left operand transposed, and
# autodiff puts the incoming gradient there, the larger one for logits and MLPs: for 8,192 tokens of vocabulary that
# copy took as long as the matmul. Here the smaller operand stands left, and the barrier keeps it there.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_product(x: jax.Array, w: jax.Array, inputs: int, dtype: Any) -> jax.Array:
  return _product(x, w, inputs, dtype)


def _product_forward(x: jax.Array, w: jax.Array, inputs: int, dtype: Any) -> tuple[jax.Array, tuple]:
  return _product(x, w, inputs, dtype), (x, w)


def _product_backward(inputs: int, dtype: Any, saved: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, w = saved
  positions, outputs = range(x.ndim - inputs), w.ndim - inputs
  x_grad = _contract(grad, range(len(positions), grad.ndim), w, range(inputs, w.ndim), x.dtype)
  if math.prod(w.shape[:inputs]) <= math.prod(w.shape[inputs:]):
    return x_grad, jax.lax.optimization_barrier(_contract(x, positions, grad, positions, w.dtype))
  swapped = jax.lax.optimization_barrier(_contract(grad, positions, x, positions, w.dtype))
  return x_grad, swapped.transpose(*range(outputs, w.ndim), *range(outputs))


_cpu_product.defvjp(_product_forward, _product_backward)


# Sums of narrow rows, and over all positions, run faster there as products with ones: a norm with its backward pass
# took 1/3 to 2/3 of the time. The barriers keep XLA from making sums of them again.
def _row_means(x: jax.Array) -> jax.Array:
  """Means over the last axis, which stays with size 1."""
  weights = jnp.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype)
  return jax.lax.optimization_barrier(_product(x, weights, 1, x.dtype))


def _sum_positions(x: jax.Array) -> jax.Array:
  """Sums over all but the last axis."""
  positions = range(x.ndim - 1)
  ones = jnp.ones(x.shape[:-1], x.dtype)
  return jax.lax.optimization_barrier(_contract(ones, positions, x, positions, x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _cpu_normalize(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, centred: bool) -> jax.Array:
  return _normalize_forward(x, scale, bias, eps, centred)[0]


def _normalize_forward(x, scale, bias, eps, centred):
  y = x.astype(jnp.float32)
  mean = _row_means(y) if centred else None
  y = y - mean if centred else y
  inverse = jax.lax.rsqrt(_row_means(y * y) + eps)
  y = y * inverse * scale
  return (y if bias is None else y + bias).astype(x.dtype), (x, mean, inverse, scale, bias)


def _normalize_backward(eps, centred, saved, grad):
  x, mean, inverse, scale, bias = saved
  grad = grad.astype(jnp.float32)
  y = x.astype(jnp.float32)
  y = (y - mean if centred else y) * inverse
  scaled = grad * scale
  x_grad = scaled - y * _row_means(scaled * y)
  x_grad = inverse * (x_grad - _row_means(scaled) if centred else x_grad)
  return x_grad.astype(x.dtype), _sum_positions(grad * y), None if bias is None else _sum_positions(grad)


_cpu_normalize.defvjp(_normalize_forward, _normalize_backward)
