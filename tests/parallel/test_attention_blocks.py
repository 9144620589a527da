"""Attention by blocks against the plain formula in float64: outputs and gradients, within a tolerance per dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.parallel import attention_blocks, kernels, remat

# Largest error relative to the largest value, of outputs and of gradients.
TOLERANCE = {'float64': 1e-12, 'float32': 3e-6, 'bfloat16': 1e-2}

SEGMENTS = np.sort(np.random.default_rng(0).integers(0, 4, (2, 150)), axis=1)
CASES = {
  'causal': {},
  'grouped': {'kv': 2},
  'multi_query': {'kv': 1},
  'window': {'window': 20},
  'window_past_a_block': {'window': 70, 'kv': 2},
  'documents': {'segments_bt': SEGMENTS},
  'softcap': {'softcap': 2.0},
  'alibi': {'alibi': True, 'kv': 2},
  'alibi_6_heads': {'alibi': True, 'h': 6},
  'all': {'window': 40, 'segments_bt': SEGMENTS, 'softcap': 3.0, 'alibi': True, 'kv': 2},
  'both_ways': {'causal': False},
  'both_ways_window': {'causal': False, 'window': 30, 'segments_bt': SEGMENTS},
  'short': {'t': 5},
}


def outputs_and_gradients(implementation, dtype, h=4, kv=None, t=150, segments_bt=None, **kwargs):
  with jax.enable_x64(True):
    rng = np.random.default_rng(1)
    kv = kv or h
    values = (rng.normal(size=(2, t, n, 8)) for n in (h, kv, kv, h))
    q, k, v, g = (jnp.asarray(value, jnp.bfloat16).astype(dtype) for value in values)  # the same in every dtype
    segments_bt = None if segments_bt is None else jnp.asarray(segments_bt, jnp.int32)

    def run(q, k, v):
      return kernels.attention(q, k, v, segments_bt=segments_bt, implementation=implementation, **kwargs)

    @jax.jit
    def both(q, k, v, g):
      out, pull = jax.vjp(run, q, k, v)
      return out, *pull(g)

    results = both(q, k, v, g)
    assert {x.dtype for x in results} == {jnp.dtype(dtype)}
    return [np.asarray(x, np.float64) for x in results]


@pytest.mark.parametrize(
  ('case', 'dtype'),
  [(case, 'float64') for case in CASES]
  + [(case, dtype) for case in ('causal', 'all') for dtype in ('float32', 'bfloat16')],
)
def test_agrees_with_the_float64_formula(case, dtype):
  got = outputs_and_gradients('blocks', dtype, **CASES[case])
  want = outputs_and_gradients('reference', 'float64', **CASES[case])
  for name, a, b in zip(('out', 'dq', 'dk', 'dv'), got, want, strict=True):
    assert np.abs(a - b).max() <= TOLERANCE[dtype] * np.abs(b).max(), name


def test_the_block_size_does_not_matter():
  rng = np.random.default_rng(2)
  q, k, v = (jnp.asarray(rng.normal(size=(1, 100, 2, 8)), jnp.float32) for _ in range(3))
  options = {'causal': True, 'window': 30, 'segments_bt': None, 'softcap': None, 'alibi': False}
  run = jax.jit(functools.partial(attention_blocks.blocks, **options), static_argnames='block')
  outs = [run(q, k, v, block=block) for block in (17, 64, 100, 1000)]
  for out in outs[1:]:
    np.testing.assert_allclose(out, outs[0], atol=1e-6)


def test_later_positions_have_no_influence():
  rng = np.random.default_rng(3)
  q, k, v = (jnp.asarray(rng.normal(size=(1, 90, 2, 8)), jnp.float32) for _ in range(3))
  run = jax.jit(functools.partial(kernels.attention, implementation='blocks'))
  out, changed = run(q, k, v), run(q, k.at[:, 70:].set(9.0), v.at[:, 70:].set(9.0))
  np.testing.assert_array_equal(out[:, :70], changed[:, :70])
  assert not np.allclose(out[:, 70:], changed[:, 70:])


def test_large_scores_stay_finite():
  q, k, v = (jnp.full((1, 80, 1, 8), 1e4, jnp.float32) for _ in range(3))
  loss = lambda *x: kernels.attention(*x, implementation='blocks').sum()  # noqa: E731
  grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
  assert all(bool(jnp.isfinite(g).all()) for g in grads)


def test_memory_grows_with_the_sequence_not_its_square():
  def kept(t):
    x = jax.ShapeDtypeStruct((1, t, 2, 8), jnp.float32)
    _, pull = jax.eval_shape(
      lambda q, k, v: jax.vjp(lambda *a: kernels.attention(*a, implementation='blocks'), q, k, v), x, x, x
    )
    return sum(leaf.size for leaf in jax.tree.leaves(pull))

  assert kept(512) == 2 * kept(256)


def test_a_policy_that_keeps_attention_does_not_compute_it_twice():
  q, k, v = (jnp.ones((1, 64, 2, 8), jnp.float32) for _ in range(3))

  def exponentials(policy):
    layer = remat.wrap(lambda q: kernels.attention(q, k, v, implementation='blocks'), policy)
    return str(jax.make_jaxpr(jax.grad(lambda q: layer(q).sum()))(q)).count(' exp ')

  assert exponentials('attention') == exponentials('none') == exponentials('full') - 1
