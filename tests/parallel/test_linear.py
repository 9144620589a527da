"""The product with weights and the norm: equal to the plain forms in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.parallel.linear import linear, normalize


@pytest.mark.parametrize(
  ('form', 'x', 'w', 'inputs'),
  [
    ('btd,df->btf', (2, 5, 3), (3, 8), 1),  # more outputs than inputs
    ('btf,fd->btd', (2, 5, 8), (8, 3), 1),  # fewer
    ('btd,dhk->bthk', (2, 5, 6), (6, 2, 2), 1),
    ('bthk,hkd->btd', (2, 5, 4, 3), (4, 3, 2), 2),
    ('bthk,hkd->btd', (2, 5, 4, 3), (4, 3, 20), 2),
  ],
)
def test_equals_einsum_and_its_gradients(form, x, w, inputs):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x, w = (jnp.asarray(rng.normal(size=shape)) for shape in (x, w))

    def both(function):
      out, pull = jax.vjp(function, x, w)
      return out, *pull(jnp.cos(out))

    got = both(lambda x, w: linear(x, w, inputs))
    want = both(lambda x, w: jnp.einsum(form, x, w))
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_dtypes_of_results_and_gradients():
  x, w = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)
  out, pull = jax.vjp(lambda x, w: linear(x, w, dtype=jnp.float32), x, w)
  assert out.dtype == jnp.float32
  assert [g.dtype for g in pull(out)] == [jnp.bfloat16, jnp.bfloat16]


def test_works_under_vmap():
  x, w = jnp.ones((5, 2, 3)), jnp.arange(60.0).reshape(5, 3, 4)
  grads = jax.vmap(jax.grad(lambda w, x: (linear(x, w) ** 2).sum()))(w, x)
  want = jax.grad(lambda w: (jnp.einsum('nbd,ndf->nbf', x, w) ** 2).sum())(w)
  np.testing.assert_allclose(grads, want)


@pytest.mark.parametrize('centred', [True, False])
@pytest.mark.parametrize('biased', [True, False])
def test_norm_equals_its_formula_and_gradients(centred, biased):
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(2, 3, size=(2, 5, 24)), jnp.float32)
  scale, bias = (jnp.asarray(rng.normal(size=24), jnp.float32) for _ in range(2))
  bias = bias if biased else None

  def formula(x, scale, bias):
    y = x - x.mean(-1, keepdims=True) if centred else x
    y = y / jnp.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * scale
    return y if bias is None else y + bias

  def both(function):
    out, pull = jax.vjp(function, x, scale, bias)
    return jax.tree.leaves((out, pull(jnp.cos(out))))

  got = both(lambda *given: normalize(*given, eps=1e-5, centred=centred))
  want = both(formula)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_norm_keeps_the_dtype_of_activations():
  x, scale = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones(4)
  out, pull = jax.vjp(lambda x, scale: normalize(x, scale, None, 1e-5, True), x, scale)
  assert out.dtype == jnp.bfloat16
  assert [g.dtype for g in pull(out)] == [jnp.bfloat16, jnp.float32]
