"""Logical axes: each parameter names what its dimensions are, and everything else is derived from the names.

Sharding, weight decay, the ledger's groups and import maps read these names. `embed` appears on matrices alone;
vectors as long as the width (norm scales, output biases) carry `norm`, so that `is_matrix` needs no other knowledge.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

NAMES = ('vocab', 'embed', 'heads', 'kv_heads', 'head_dim', 'mlp', 'layers', 'positions', 'norm')

Axes = tuple[str, ...]
Init = Callable[[jax.Array | None, tuple[int, ...], Any], jax.Array]


def param(key: jax.Array | None, shape: tuple[int, ...], axes: Axes, init: Init) -> nnx.Param:
  """A float32 parameter whose dimensions are named. Raises ValueError when names are missing, unknown or too few."""
  check_axes(axes, shape)
  return nnx.Param(init(key, shape, jnp.float32), axes=tuple(axes))


def check_axes(axes: Axes | None, shape: tuple[int, ...], where: str = 'a parameter') -> None:
  if axes is None:
    raise ValueError(f'{where} of shape {shape} has no logical axes: create it with scaling.models.axes.param')
  if len(axes) != len(shape):
    raise ValueError(f'{where} of shape {shape} has {len(axes)} logical axes {axes}: name each dimension')
  for name in axes:
    if name not in NAMES:
      raise ValueError(f'{where} has the unknown logical axis {name!r}: known: {", ".join(NAMES)}')


def check_module(module: nnx.Module) -> None:
  """Raises ValueError for the first parameter without axes, naming its path."""
  for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
    check_axes(variable.get_metadata().get('axes'), variable.shape, '/'.join(map(str, path)))


def stack(module: nnx.Module, name: str) -> None:
  """Names the leading axis that stacking has put before every parameter of `module`."""
  for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
    variable.set_metadata(axes=(name, *variable.get_metadata()['axes']))


def axes_tree(state: nnx.State) -> dict[str, Any]:
  """The axes of every parameter, as a nested dict like the parameters' own."""
  return nnx.to_pure_dict(jax.tree.map(_axes_of, state, is_leaf=lambda x: isinstance(x, nnx.Variable)))


def _axes_of(variable: nnx.Variable) -> nnx.Variable:
  return variable.replace(variable.get_metadata()['axes'])


def is_matrix(axes: Axes) -> bool:
  """Whether a parameter is a matrix (weight decay and Muon's kind), not a norm scale, bias or table of positions."""
  return 'embed' in axes and 'positions' not in axes


def normal(std: float) -> Init:
  def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    # The same numbers in any shape; XLA on CPU compiles them in two dimensions in under half the time of three.
    flat = (math.prod(shape[:-1]), shape[-1])
    return (std * jax.random.normal(key, flat, dtype)).reshape(shape)

  return init


def zeros(key: None, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  return jnp.zeros(shape, dtype)


def ones(key: None, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  return jnp.ones(shape, dtype)
