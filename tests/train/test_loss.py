"""The chunked cross-entropy equals the plain one, value and gradient, sharded or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scaling.config import Model
from scaling.models import decoder
from scaling.parallel import mesh as meshes
from scaling.train import loss

B, T, D, V = 4, 12, 16, 40


@functools.cache
def setup(vocab=V, **fields):
  model = Model(layers=1, width=D, heads=4, vocab=vocab, **fields)
  params = jax.jit(decoder.init, static_argnums=0)(model, jax.random.key(0))
  x_btd = jax.random.normal(jax.random.key(1), (B, T, D))
  targets_bt = jax.random.randint(jax.random.key(2), (B, T), 0, V)
  mask_bt = jax.random.bernoulli(jax.random.key(3), 0.7, (B, T))
  return model, params, x_btd, targets_bt, mask_bt


def plain(model, params, x_btd, targets_bt, mask_bt):
  logits_btv = decoder.logits(model, params, x_btd)
  nats_bt = optax.softmax_cross_entropy_with_integer_labels(logits_btv, targets_bt)
  return (nats_bt if mask_bt is None else nats_bt * mask_bt).sum()


UNTIED = {'tied': False, 'logit_softcap': 3.0}


@pytest.mark.parametrize('fields,chunk,masked', [({}, 1, False), ({}, 5, True), ({}, 12, True), (UNTIED, 4, True)])
def test_chunks_equal_the_plain_loss(fields, chunk, masked):
  model, params, x_btd, targets_bt, mask_bt = setup(**fields)
  mask_bt = mask_bt if masked else None

  def ours(params, x_btd):
    nats, count = loss.cross_entropy(model, params, x_btd, targets_bt, mask_bt, chunk)
    return nats / 7, count

  def theirs(params, x_btd):
    return plain(model, params, x_btd, targets_bt, mask_bt) / 7

  (value, count), grads = jax.jit(jax.value_and_grad(ours, argnums=(0, 1), has_aux=True))(params, x_btd)
  expected, expected_grads = jax.jit(jax.value_and_grad(theirs, argnums=(0, 1)))(params, x_btd)
  assert count == (mask_bt.sum() if masked else B * T)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grads, expected_grads)


def test_uniform_logits_cost_log_vocabulary():
  model, params, x_btd, targets_bt, _ = setup()
  nats, count = loss.cross_entropy(model, params, jnp.zeros_like(x_btd), targets_bt, None, 3)
  np.testing.assert_allclose(nats / count, np.log(V), rtol=1e-6)


def test_no_chunk_holds_all_logits():
  """The largest float32 array of the compiled gradient is a chunk of logits, not all of them."""
  model, params, x_btd, targets_bt, _ = setup(vocab=4096)

  def mean(chunk):
    def f(params, x_btd):
      return loss.cross_entropy(model, params, x_btd, targets_bt, None, chunk)[0]

    return jax.jit(jax.grad(f, argnums=(0, 1))).lower(params, x_btd).compile().memory_analysis().temp_size_in_bytes

  assert mean(1) < mean(T) / 4


def test_vocabulary_sharded_logits_are_not_gathered():
  model, params, x_btd, targets_bt, mask_bt = setup()
  mesh = meshes.make(meshes.MeshSpec(data=2, model=4))
  shardings = meshes.shardings(decoder.axes(model), params, mesh)

  def f(params, x_btd, targets_bt, mask_bt, chunk):
    with meshes.use(mesh):
      return loss.cross_entropy(model, params, x_btd, targets_bt, mask_bt, chunk)[0]

  for chunk in (T, 4):
    step = jax.jit(
      jax.value_and_grad(f), static_argnums=4, in_shardings=(shardings, *[meshes.batch_sharding(mesh)] * 3)
    )
    sharded = jax.device_put(params, shardings)
    rows = [jax.device_put(a, meshes.batch_sharding(mesh)) for a in (x_btd, targets_bt, mask_bt)]
    value, grads = step(sharded, *rows, chunk)
    expected, expected_grads = jax.jit(jax.value_and_grad(lambda p: plain(model, p, x_btd, targets_bt, mask_bt)))(
      params
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected_grads)
    text = step.lower(sharded, *rows, chunk).compile().as_text()
    whole = [line for line in text.splitlines() if 'all-gather' in line and f',{V}]' in line.split('all-gather')[0]]
    assert not whole, whole


def test_chunk_size_divides_and_is_bounded():
  model = Model(vocab=50_000)
  assert loss.chunk_size(model, 8, 128, requested=48) == 32
  chosen = loss.chunk_size(model, 8, 1024)
  assert 1024 % chosen == 0 and 4 * 8 * chosen * 50_000 <= loss.LOGITS_BYTES['cpu']
  assert loss.chunk_size(Model(vocab=300), 8, 128) == 128
