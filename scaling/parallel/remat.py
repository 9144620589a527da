"""Rematerialisation policies by name: what the forward pass keeps for the backward pass of each block."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from scaling.errors import unknown

# Values that the model tags with `tag`, and that the policies may keep.
NAMES = ('attention_out', 'mlp_hidden')

_policies = jax.checkpoint_policies
POLICIES: dict[str, Any] = {
  'none': None,  # no rematerialisation: everything is kept
  'full': _policies.nothing_saveable,  # only the input of each block is kept
  'dots': _policies.dots_with_no_batch_dims_saveable,  # outputs of the weight matmuls are kept
  'attention': _policies.save_only_these_names('attention_out'),  # attention is not recomputed, the rest is
}


def policy(name: str) -> Callable[..., Any] | None:
  """The `jax.checkpoint` policy of this name; None for 'none', which means no checkpointing at all."""
  if name not in POLICIES:
    raise unknown('remat policy', name, POLICIES)
  return POLICIES[name]


def wrap(function: Callable[..., Any], name: str) -> Callable[..., Any]:
  """`function` under `jax.checkpoint` with the named policy; unchanged for 'none'.

  Meant for the body of a scan over layers, which makes XLA's protection against merging
  the recomputation with the first computation needless.
  """
  chosen = policy(name)
  return function if name == 'none' else jax.checkpoint(function, policy=chosen, prevent_cse=False)


def tag(x: jax.Array, name: str) -> jax.Array:
  """Names a value, so that a policy can keep it."""
  if name not in NAMES:
    raise unknown('remat tag', name, NAMES)
  return checkpoint_name(x, name)
