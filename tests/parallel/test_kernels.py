import jax
import jax.numpy as jnp
import numpy as np

from scaling.parallel import kernels


def inputs(b=2, t=80, h=4, kv=2, d=8, dtype=jnp.float32, seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  q = jax.random.normal(keys[0], (b, t, h, d)).astype(dtype)
  k = jax.random.normal(keys[1], (b, t, kv, d)).astype(dtype)
  v = jax.random.normal(keys[2], (b, t, kv, d)).astype(dtype)
  return q, k, v


def test_blocks_agree_with_the_reference():
  q, k, v = inputs()
  a = kernels.attention(q, k, v, implementation='blocks')
  b = kernels.attention(q, k, v, implementation='reference')
  np.testing.assert_allclose(a, b, atol=2e-6)
