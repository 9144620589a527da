"""The decoder: what it may see, what must not change it, and what must be named."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling.config import Execution, Model
from scaling.errors import UserError
from scaling.models import axes, decoder

VOCAB, TIME = 37, 12
# Large weights, so that a mistake shows far above rounding.
TINY = Model(layers=2, width=16, heads=2, vocab=VOCAB, init_std=0.3, dtype='float32')
VARIANTS = {
  'rotary swiglu': TINY,
  'gpt2': dataclasses.replace(TINY, norm='layernorm', mlp='gelu', positions='learned', context=TIME, bias=True),
  'gpt3': dataclasses.replace(TINY, layers=3, positions='alibi', window=3, window_every=2, bias=True),
  'grouped, capped': dataclasses.replace(
    TINY, heads=4, kv_heads=2, qk_norm=True, attention_softcap=5.0, logit_softcap=9.0, tied=False
  ),
  'no positions': dataclasses.replace(TINY, positions='none', head_dim=4),
}
# Compiled: op by op, JAX compiles each operation by itself, which takes longer.
apply = jax.jit(decoder.apply, static_argnums=0, static_argnames='execution')
init = jax.jit(decoder.init, static_argnums=0)
variants = pytest.mark.parametrize('model', VARIANTS.values(), ids=VARIANTS.keys())


@functools.cache
def _params(model, seed=0):
  """Parameters none of which sits at its initial constant; drawn by numpy, as nothing needs compiling there."""
  rng = np.random.default_rng(seed)
  noise = lambda p: jnp.asarray((p.ndim < 2) + model.init_std * rng.standard_normal(p.shape), jnp.float32)  # noqa: E731
  return jax.tree.map(noise, decoder.abstract(model)[1])


def _tokens(batch=2, time=TIME, seed=2):
  return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (batch, time)))


def _influence(model, params, segments_bt=None, execution=None):
  """[t, s]: how far the logits at t move with the embedding of the token at s, by gradients."""
  tokens_bt = jnp.arange(TIME)[None]  # all different, so that rows of the table are positions
  model = dataclasses.replace(model, tied=False)

  def logits(embedding):
    values = {**params, 'embedding': embedding}
    return apply(model, values, tokens_bt, segments_bt, execution=execution)[0].sum(-1)

  grads_tvd = jax.jit(jax.jacrev(logits))(params['embedding'])
  return np.abs(grads_tvd[:, :TIME]).sum(-1)


@pytest.mark.parametrize('name', ['rotary swiglu', 'gpt2', 'gpt3'])
def test_causal_by_gradients(name):
  model = VARIANTS[name]
  params = _params(dataclasses.replace(model, tied=False))
  influence_ts = _influence(model, params)
  assert np.all(influence_ts[np.triu_indices(TIME, 1)] == 0)
  assert np.all(np.diag(influence_ts) > 0)
  if model.window is None:
    assert np.all(influence_ts[np.tril_indices(TIME)] > 0)


def test_window_reaches_as_far_as_layers_allow():
  model = dataclasses.replace(TINY, window=3, tied=False)  # two layers of two positions back each
  influence_ts = _influence(model, _params(model))
  distance_ts = np.subtract.outer(np.arange(TIME), np.arange(TIME))
  seen = (distance_ts >= 0) & (distance_ts <= 4)
  assert np.all(influence_ts[seen] > 0) and np.all(influence_ts[~seen] == 0)


def test_banded_layers_alternate_with_dense_ones():
  model = dataclasses.replace(TINY, layers=4, window=3, window_every=2)
  assert [model.layer_window(i) for i in range(4)] == [None, 3, None, 3]
  params, tokens_bt = _params(model), _tokens()
  dense = apply(dataclasses.replace(model, window=None, window_every=1), params, tokens_bt)
  banded = apply(dataclasses.replace(model, window_every=1), params, tokens_bt)
  mixed = apply(model, params, tokens_bt)
  assert not np.allclose(mixed, dense, atol=1e-2) and not np.allclose(mixed, banded, atol=1e-2)
  np.testing.assert_allclose(mixed[:, :3], dense[:, :3], atol=1e-4)  # the band is not felt before its width


@pytest.mark.parametrize('name', ['rotary swiglu', 'gpt3', 'no positions'])
def test_document_mask_equals_separate_documents(name):
  model = VARIANTS[name]
  params, tokens_bt = _params(model), _tokens(batch=1)
  segments_bt = jnp.array([[0] * 6 + [1] * 6])
  packed = apply(model, params, tokens_bt, segments_bt)
  first = apply(model, params, tokens_bt[:, :6])
  second = apply(model, params, tokens_bt[:, 6:])
  np.testing.assert_allclose(packed, jnp.concatenate([first, second], 1), atol=2e-4)


def test_positions_keep_their_place_in_the_window():
  model = VARIANTS['gpt2']
  params, tokens_bt = _params(model), _tokens()
  packed = apply(model, params, tokens_bt, jnp.array([[0] * 5 + [1] * 7] * 2))
  second = apply(model, params, tokens_bt[:, 5:], positions_bt=jnp.arange(5, TIME)[None])
  np.testing.assert_allclose(packed[:, 5:], second, atol=1e-4)


@pytest.mark.parametrize('name', ['rotary swiglu', 'gpt3'])
def test_scan_equals_unrolled_and_remat_changes_nothing(name):
  model = VARIANTS[name]
  params, tokens_bt = _params(model), _tokens()

  def loss_and_grads(execution):
    def loss(params):
      return jnp.square(apply(model, params, tokens_bt, execution=execution)).mean()

    return jax.jit(jax.value_and_grad(loss))(params)

  loss, grads = loss_and_grads(Execution())
  tolerance = 1e-5 * max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
  for execution in (Execution(scan_layers=True), Execution(remat='full')):
    other_loss, other_grads = loss_and_grads(execution)
    assert float(other_loss) == pytest.approx(float(loss), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), grads, other_grads)


def test_grouped_equals_multi_head_with_repeated_keys_and_values():
  grouped = dataclasses.replace(TINY, heads=4, kv_heads=2)
  full = dataclasses.replace(grouped, kv_heads=4)
  params, tokens_bt = _params(grouped), _tokens()
  attention = params['blocks']['attention']
  repeated = {name: jnp.repeat(attention[name], 2, axis=-2) for name in ('key', 'value')}
  repeated = {**params, 'blocks': {**params['blocks'], 'attention': {**attention, **repeated}}}
  np.testing.assert_allclose(apply(grouped, params, tokens_bt), apply(full, repeated, tokens_bt), atol=1e-4)
  same = dataclasses.replace(TINY, kv_heads=TINY.heads)
  params = _params(TINY)
  np.testing.assert_array_equal(apply(TINY, params, tokens_bt), apply(same, params, tokens_bt))


def test_bfloat16_is_close_to_float32():
  model = dataclasses.replace(TINY, init_std=0.1)
  params, tokens_bt = init(model, jax.random.key(0)), _tokens()
  full = apply(model, params, tokens_bt)
  half = apply(dataclasses.replace(model, dtype='bfloat16'), params, tokens_bt)
  assert half.dtype == jnp.float32
  assert float(jnp.abs(full - half).max()) < 0.02 * float(jnp.abs(full).max())
  assert float(jnp.abs(full - half).max()) > 0


@variants
def test_every_parameter_names_its_axes(model):
  _, shapes = decoder.abstract(model)
  named = decoder.axes(model)
  is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
  assert jax.tree.structure(shapes) == jax.tree.structure(named, is_leaf=is_axes)
  for struct, names in zip(jax.tree.leaves(shapes), jax.tree.leaves(named, is_leaf=is_axes), strict=True):
    assert len(struct.shape) == len(names) and set(names) <= set(axes.NAMES)
    assert struct.dtype == jnp.float32
  made = jax.eval_shape(lambda: decoder.init(model, jax.random.key(0)))
  jax.tree.map(lambda s, p: (s.shape == p.shape) or pytest.fail(str(s)), shapes, made)
  assert all(names[0] == 'layers' for names in jax.tree.leaves(named['blocks'], is_leaf=is_axes))


def test_matrices_are_told_from_vectors_by_axes():
  named = decoder.axes(VARIANTS['gpt2'])
  assert axes.is_matrix(named['embedding']) and axes.is_matrix(named['blocks']['attention']['out'])
  assert not axes.is_matrix(named['positions'])
  for name in ('query_bias', 'out_bias'):
    assert not axes.is_matrix(named['blocks']['attention'][name])
  assert not axes.is_matrix(named['norm']['scale'])


def test_a_parameter_without_axes_is_an_error():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match='name each dimension'):
    axes.param(key, (2, 3), ('embed',), axes.zeros)
  with pytest.raises(ValueError, match="'widht'"):
    axes.param(key, (2, 3), ('embed', 'widht'), axes.zeros)

  class Bare(nnx.Module):
    def __init__(self):
      self.good = axes.param(key, (2,), ('norm',), axes.ones)
      self.bad = nnx.Param(jnp.zeros((3,)))

  with pytest.raises(ValueError, match=r'bad of shape \(3,\) has no logical axes'):
    axes.check_module(Bare())


def test_initial_scales():
  model = Model(layers=8, width=128, heads=4, vocab=512, tied=False, bias=True)
  params = init(model, jax.random.key(0))
  blocks = params['blocks']
  for wide in (params['embedding'], params['head'], blocks['attention']['query'], blocks['mlp']['up']):
    assert float(wide.std()) == pytest.approx(0.02, rel=0.02)
  for residual in (blocks['attention']['out'], blocks['mlp']['down']):
    assert float(residual.std()) == pytest.approx(0.02 / 4, rel=0.02)
  assert not np.array_equal(blocks['mlp']['up'][0], blocks['mlp']['up'][1])
  assert float(jnp.abs(blocks['mlp']['up_bias']).max()) == 0


def test_lanes_of_a_pack_equal_single_models():
  keys = jax.random.split(jax.random.key(3), 2)
  packed = jax.jit(jax.vmap(lambda k: init(TINY, k)))(keys)
  single = init(TINY, keys[1])
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), packed, single)
  logits = jax.jit(jax.vmap(lambda p: apply(TINY, p, _tokens())))(packed)
  np.testing.assert_allclose(logits[1], apply(TINY, single, _tokens()), atol=1e-4)


def test_mistakes_are_told_in_one_line():
  with pytest.raises(UserError, match=r'model\.vocab is not set'):
    decoder.abstract(dataclasses.replace(TINY, vocab=None))
  short = dataclasses.replace(VARIANTS['gpt2'], context=8)
  with pytest.raises(UserError, match=r'sequence of 12 is longer than model\.context=8'):
    apply(short, _params(short), _tokens())
