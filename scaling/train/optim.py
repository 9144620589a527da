"""AdamW by optax: clipping, decay masks from the logical axes, and a rate that is an argument of each update."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from scaling.config import Optim
from scaling.models import axes as logical


def is_axes(leaf: Any) -> bool:
  """Whether a node of an axes tree is a leaf: one parameter's tuple of axis names."""
  return isinstance(leaf, tuple) and all(isinstance(name, str) for name in leaf)


def decays(axes: tuple[str, ...]) -> bool:
  """Whether weight decay applies to a parameter with these logical axes: to matrices, and to nothing else.

  Norm scales, biases, and the tables of token and position embeddings are left alone; a step touches few rows of a
  table, and decay would shrink the others. An untied output projection (`embed`, `vocab`) is a matrix; a tied one is
  the embedding table (`vocab`, `embed`) and does not decay.
  """
  return logical.is_matrix(axes) and axes[0] != 'vocab'


def decay_mask(axes_tree: Any) -> Any:
  """A tree of booleans of the shape of the parameters: where weight decay applies."""
  return jax.tree.map(decays, axes_tree, is_leaf=is_axes)


def scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
  """Multiplies updates by minus the `learning_rate` handed to `update`."""

  def update(updates: Any, state: Any, params: Any = None, *, learning_rate: jax.Array, **_: Any) -> tuple[Any, Any]:
    del params
    return jax.tree.map(lambda u: -learning_rate.astype(u.dtype) * u, updates), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def make(optim: Optim, axes_tree: Any) -> optax.GradientTransformationExtraArgs:
  """AdamW (arXiv:1711.05101, decay times the rate); `update(..., learning_rate=rate)` gives the rate of the step.

  Gradients are first scaled down to a global norm of `optim.clip_norm`. Moments are float32. The schedule's fields of
  `optim` are not read: see schedule.py.
  """
  parts = [] if optim.clip_norm is None else [optax.clip_by_global_norm(optim.clip_norm)]
  parts.append(optax.scale_by_adam(optim.beta1, optim.beta2, optim.eps, mu_dtype=jnp.float32))
  if optim.weight_decay:
    parts.append(optax.add_decayed_weights(optim.weight_decay, decay_mask(axes_tree)))
  parts.append(scale_by_given_rate())
  return optax.chain(*parts)
