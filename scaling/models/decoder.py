"""A pre-norm decoder in Flax NNX, and its functional edge: everything outside works on a nested dict of arrays.

    params = decoder.init(model, key)
    logits_btv = decoder.apply(model, params, tokens_bt)

Positions count from 0 at the start of each window. A document mask keeps attention inside a document but does not
restart positions: rotary and ALiBi see only differences, learned positions keep the place in the window.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scaling import config
from scaling.errors import UserError
from scaling.models import axes as logical
from scaling.models.layers import Attention, Mlp, Norm, compute_dtype, rotation_angles
from scaling.parallel import kernels, remat
from scaling.parallel.linear import linear
from scaling.parallel.mesh import constrain

Params = dict[str, Any]

# On CPU, blocks in a row ran 1.3 times as fast as a scan over them, which copies what the backward pass needs into
# stacks. Compiling takes longer, for six layers 16 s instead of 9 s on a busy machine: so only up to this many.
UNROLLED_LAYERS = 16


def scans(model: config.Model, execution: config.Execution, platform: str) -> bool:
  """Whether the blocks run as a scan: as asked, else anywhere but for few layers on CPU.

  Where a remat policy should save memory, only the scan does so on CPU.
  """
  if execution.scan_layers is not None:
    return execution.scan_layers
  return platform != 'cpu' or model.layers > UNROLLED_LAYERS or execution.remat != 'none'


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, model: config.Model, key: jax.Array):
    keys = jax.random.split(key, 7)
    self.attention_norm = Norm(model, model.width)
    self.attention = Attention(model, keys[:4])
    self.mlp_norm = Norm(model, model.width)
    self.mlp = Mlp(model, keys[4:])

  def __call__(self, x_btd, rotation, segments_bt, window, implementation, positions_bt=None) -> jax.Array:
    y_btd = self.attention_norm(x_btd)
    x_btd = x_btd + self.attention(y_btd, rotation, segments_bt, window, implementation, positions_bt)
    x_btd = constrain(x_btd, ('batch', 'sequence', 'embed'))
    x_btd = x_btd + self.mlp(self.mlp_norm(x_btd))
    return constrain(x_btd, ('batch', 'sequence', 'embed'))


def _stacked_blocks(model: config.Model, keys: jax.Array) -> Block:
  """One Block whose parameters have a leading `layers` axis, drawn layer by layer.

  The same numbers as nnx.vmap gives; a loop compiles in half the time on CPU and holds one layer's draws at once.
  """
  graphdef = nnx.graphdef(nnx.eval_shape(lambda: Block(model, jax.random.key(0))))
  blocks = nnx.merge(graphdef, jax.lax.map(lambda key: nnx.to_pure_dict(nnx.state(Block(model, key))), keys))
  logical.stack(blocks, 'layers')
  return blocks


class Decoder(nnx.Module):
  """Token ids to final hidden states, and those to logits. Blocks hold their parameters stacked over layers."""

  def __init__(self, model: config.Model, key: jax.Array):
    if model.vocab is None:
      raise UserError('model.vocab is not set: give it, or resolve the run first so that the tokenizer fills it in')
    keys = jax.random.split(key, 4)
    std = logical.normal(model.init_std)
    self.model = model
    self.embedding = logical.param(keys[0], (model.vocab, model.width), ('vocab', 'embed'), std)
    if model.positions == 'learned':
      if model.context is None:
        raise UserError('model.context is not set: learned positions need a table length')
      self.positions = logical.param(keys[1], (model.context, model.width), ('positions', 'embed'), std)
    self.blocks = _stacked_blocks(model, jax.random.split(keys[2], model.layers))
    self.norm = Norm(model, model.width)
    if not model.tied:
      self.head = logical.param(keys[3], (model.width, model.vocab), ('embed', 'vocab'), std)
    logical.check_module(self)

  def hidden(
    self,
    tokens_bt: jax.Array,
    segments_bt: jax.Array | None,
    positions_bt: jax.Array | None,
    execution: config.Execution,
  ) -> jax.Array:
    model, dtype = self.model, compute_dtype(self.model)
    given_bt = positions_bt
    if positions_bt is None:
      positions_bt = jnp.arange(tokens_bt.shape[-1])[None]
    x_btd = self.embedding[...].astype(dtype)[tokens_bt]
    if model.positions == 'learned':
      if tokens_bt.shape[-1] > model.context:
        raise UserError(f'a sequence of {tokens_bt.shape[-1]} is longer than model.context={model.context}')
      x_btd = x_btd + self.positions[...].astype(dtype)[positions_bt]
    x_btd = constrain(x_btd, ('batch', 'sequence', 'embed'))
    rotation = rotation_angles(model, positions_bt) if model.positions == 'rotary' else None
    x_btd = self._run_blocks(x_btd, rotation, segments_bt, given_bt, execution)
    return self.norm(x_btd)

  def _run_blocks(self, x_btd, rotation, segments_bt, positions_bt, execution: config.Execution) -> jax.Array:
    model = self.model
    scan = scans(model, execution, kernels.target_platform())
    graphdef, stacked = nnx.split(self.blocks)
    stacked = nnx.to_pure_dict(stacked)
    policy = remat.policy(execution.remat)

    def run_block(x_btd, layer_params, window):
      def run(x_btd, layer_params, rotation, segments_bt, positions_bt):
        block = nnx.merge(graphdef, layer_params)
        return block(x_btd, rotation, segments_bt, window, execution.attention, positions_bt)

      if policy is not None:
        # Inside a scan the loop itself keeps XLA from undoing the recomputation.
        run = jax.checkpoint(run, policy=policy, prevent_cse=not scan)
      return run(x_btd, layer_params, rotation, segments_bt, positions_bt)

    # The window alternates with this period, and must be static: scan over whole periods.
    period = model.window_every if model.window else 1
    groups = model.layers // period if scan else 0

    def run_group(x_btd, group_params):
      for i in range(period):
        x_btd = run_block(x_btd, _layer(group_params, i), model.layer_window(i))
      return x_btd, None

    if groups:
      grouped = jax.tree.map(lambda p: p[: groups * period].reshape(groups, period, *p.shape[1:]), stacked)
      x_btd, _ = jax.lax.scan(run_group, x_btd, grouped)
    for i in range(groups * period, model.layers):
      x_btd = run_block(x_btd, _layer(stacked, i), model.layer_window(i))
    return x_btd

  def logits(self, x_btd: jax.Array) -> jax.Array:
    model = self.model
    weights_dv = self.embedding[...].T if model.tied else self.head[...]
    logits_btv = linear(x_btd, weights_dv.astype(x_btd.dtype), dtype=jnp.float32)
    if model.logit_softcap:
      logits_btv = model.logit_softcap * jnp.tanh(logits_btv / model.logit_softcap)
    return constrain(logits_btv, ('batch', 'sequence', 'vocab'))


def _layer(stacked: Params, i: int) -> Params:
  return jax.tree.map(lambda p: p[i], stacked)


@functools.cache
def _abstract(model: config.Model) -> tuple[nnx.GraphDef, nnx.State]:
  # The shapes are the same under any trace, so one answer serves all.
  return nnx.split(nnx.eval_shape(lambda: Decoder(model, jax.random.key(0))))


def abstract(model: config.Model) -> tuple[nnx.GraphDef, Params]:
  """The module's structure and the ShapeDtypeStruct of each parameter; allocates nothing."""
  graphdef, state = _abstract(model)
  return graphdef, nnx.to_pure_dict(state)


def axes(model: config.Model) -> Params:
  """The logical axes of each parameter, as tuples of names, structured as the parameters."""
  return logical.axes_tree(_abstract(model)[1])


def init(model: config.Model, key: jax.Array) -> Params:
  """Fresh float32 parameters. Under `jax.jit(..., out_shardings=...)` each device makes only its part."""
  return nnx.to_pure_dict(nnx.state(Decoder(model, key), nnx.Param))


def hidden(
  model: config.Model,
  params: Params,
  tokens_bt: jax.Array,
  segments_bt: jax.Array | None = None,
  *,
  positions_bt: jax.Array | None = None,
  execution: config.Execution | None = None,
) -> jax.Array:
  """Final normed hidden states [b, t, d] in the compute dtype.

  segments_bt: document numbers; attention stays inside equal ones. positions_bt ([b or 1, t]): the places in the
  window, where they are not 0..t-1. Raises UserError for a sequence longer than a learned position table.
  """
  module = nnx.merge(_abstract(model)[0], params)
  return module.hidden(tokens_bt, segments_bt, positions_bt, execution or config.Execution())


def logits(model: config.Model, params: Params, x_btd: jax.Array) -> jax.Array:
  """Float32 logits [b, t, v] of hidden states."""
  return nnx.merge(_abstract(model)[0], params).logits(x_btd)


def apply(model: config.Model, params: Params, tokens_bt: jax.Array, segments_bt=None, **kwargs) -> jax.Array:
  """Float32 logits [b, t, v] of token ids; keywords as `hidden`."""
  return logits(model, params, hidden(model, params, tokens_bt, segments_bt, **kwargs))
