"""AdamW does what its equations say, and decays what it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import Model, Optim
from scaling.models import decoder
from scaling.train import optim


@pytest.mark.parametrize('tied', [True, False])
def test_decay_takes_matrices_only(tied):
  model = Model(vocab=50, tied=tied, bias=True, qk_norm=True, norm='layernorm', positions='learned', context=8)
  mask = optim.decay_mask(decoder.axes(model))
  flat = {jax.tree_util.keystr(k, simple=True, separator='.'): v for k, v in jax.tree_util.tree_leaves_with_path(mask)}
  shapes = jax.tree.structure(decoder.abstract(model)[1])
  assert jax.tree.structure(mask) == shapes
  decayed = {name for name, on in flat.items() if on}
  matrices = {f'blocks.attention.{n}' for n in ('query', 'key', 'value', 'out')}
  matrices |= {f'blocks.mlp.{n}' for n in (('gate', 'up', 'down') if model.mlp == 'swiglu' else ('up', 'down'))}
  assert decayed == matrices | (set() if tied else {'head'})


def test_one_update_is_adamw_by_hand():
  """First update: the moments' bias corrections cancel, so the direction is g / (|g| + eps), then decay and rate."""
  config = Optim(weight_decay=0.5, clip_norm=None, eps=1e-8)
  params = {'w': jnp.array([[1.0, -2.0]]), 'scale': jnp.array([3.0])}
  grads = {'w': jnp.array([[0.1, 0.2]]), 'scale': jnp.array([-4.0])}
  transform = optim.make(config, {'w': ('embed', 'mlp'), 'scale': ('norm',)})
  updates, _ = transform.update(grads, transform.init(params), params, learning_rate=jnp.float32(0.01))
  np.testing.assert_allclose(updates['w'], [[-0.01 * (1 + 0.5 * 1.0), -0.01 * (1 + 0.5 * -2.0)]], rtol=1e-5, atol=1e-8)
  np.testing.assert_allclose(updates['scale'], [0.01], rtol=1e-5)


def test_clipping_scales_the_whole_gradient():
  """Adam hides the scale of a single step, so compare two steps after one huge gradient with its clipped form."""
  params = {'w': jnp.ones((2, 2))}
  huge, small = {'w': jnp.full((2, 2), 100.0)}, {'w': jnp.full((2, 2), 0.3)}
  clipped = {'w': huge['w'] / 200.0}  # its norm is 200

  def two_steps(first, clip):
    transform = optim.make(Optim(clip_norm=clip, weight_decay=0), {'w': ('embed', 'mlp')})
    state = transform.init(params)
    _, state = transform.update(first, state, params, learning_rate=jnp.float32(1))
    return transform.update(small, state, params, learning_rate=jnp.float32(1))[0]['w']

  np.testing.assert_allclose(two_steps(huge, 1.0), two_steps(clipped, None), rtol=1e-5)
