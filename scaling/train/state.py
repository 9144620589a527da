"""What training carries from step to step, and what a checkpoint holds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Everything the next step depends on besides its batch and rate. Scalars live on the device.

  The running sums behind a row of records are part of it, so that a run resumed between two rows writes the
  row that the uninterrupted run would have written.
  """

  step: jax.Array  # int32: updates done
  params: Any
  opt_state: Any
  loss_sum: jax.Array  # float32: sum of the training losses since the last row, nats/token
  loss_count: jax.Array  # int32: of so many steps
  last_loss: jax.Array  # float32: the last finite training loss
  grad_norm: jax.Array  # float32: of the last step, before clipping
  diverged_step: jax.Array  # int32: the first update whose loss or gradient was not finite, or -1


def create(params: Any, opt_state: Any) -> State:
  """The state before the first step."""
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=opt_state,
    loss_sum=jnp.zeros((), jnp.float32),
    loss_count=jnp.zeros((), jnp.int32),
    last_loss=jnp.full((), jnp.nan, jnp.float32),
    grad_norm=jnp.zeros((), jnp.float32),
    diverged_step=jnp.full((), -1, jnp.int32),
  )
