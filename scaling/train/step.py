"""The compiled programs of a run: initial state, a dispatch of training steps, evaluation.

Nothing here touches a device until a program is called, so they can be lowered for machines that are not here.
Runs that differ in schedule, budget, seed or data share their programs: what differs is an argument.
"""

import concurrent.futures
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling import ledger
from scaling.config import Data, Execution, Model, Optim, Run
from scaling.data.stream import Batch
from scaling.errors import UserError
from scaling.models import decoder
from scaling.parallel import mesh as meshes
from scaling.parallel import platform, ring
from scaling.train import loss, optim
from scaling.train.state import State, create

# On a CPU, steps are dispatched together until they hold about this much work or this many steps: alone, a small
# model's step is shorter than the host's work for it.
DISPATCH_FLOPS = 4e9
DISPATCH_STEPS = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
  """What the host may read after a dispatch, while the state itself goes on to the next one. Scalars."""

  step: jax.Array
  train_loss: jax.Array  # mean since the last row, nats/token
  last_loss: jax.Array
  grad_norm: jax.Array
  diverged_step: jax.Array
  signal: jax.Array  # the largest of what the hosts sent along: see loop.py


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """The programs of one shape of run on one mesh, under `jax.jit`, with explicit shardings.

  init(key) -> State
  train(state, batches, rates_k, count, fresh, signals) -> (State, Metrics): `count` of the `capacity` stacked batches
    are trained on, with their rates; `fresh` starts a new mean of the training loss. The state is donated. Any
    split of the same steps into dispatches gives the same numbers, as all run the same compiled loop.
  evaluate(params, batches) -> nats/token over stacked batches [m, batch, ...], weighted by token.
  """

  mesh: Mesh
  capacity: int  # steps per dispatch at most
  shapes: State  # ShapeDtypeStructs with shardings: what is donated, and what a checkpoint restores into
  batch_sharding: NamedSharding  # of stacked batches [k, batch, ...]
  signal_sharding: NamedSharding
  init: Any
  train: Any
  evaluate: Any
  compiled: dict = dataclasses.field(default_factory=dict)  # see compile_program


def make_program(run: Run, execution: Execution, mesh: Mesh, capacity: int | None = None) -> Program:
  """The programs of a resolved run. Raises UserError where the batch or an axis of the model does not divide over
  the mesh."""
  parts = meshes.axis_size(mesh, 'data', 'fsdp')
  if run.data.batch_size % (parts * execution.microbatches):
    raise UserError(
      f'data.batch_size={run.data.batch_size} does not divide over data x fsdp = {parts} devices '
      f'and execution.microbatches={execution.microbatches}: take a multiple of {parts * execution.microbatches}'
    )
  meshes.check_divides(run, execution, mesh.shape)
  if capacity is None:
    capacity = steps_per_dispatch(run, mesh)
  # Only what is compiled into the programs, so that runs with the same of it share them.
  compiled_optim = Optim(**{k: getattr(run.optim, k) for k in ('beta1', 'beta2', 'eps', 'weight_decay', 'clip_norm')})
  compiled_execution = Execution(
    **{k: getattr(execution, k) for k in ('attention', 'remat', 'microbatches', 'loss_chunk', 'scan_layers')}
  )
  return _program(run.model, compiled_optim, compiled_execution, mesh, capacity)


def steps_per_dispatch(run: Run, mesh: Mesh) -> int:
  """How many steps one dispatch holds: many of a small model on one CPU process, one elsewhere."""
  if mesh.devices.flat[0].platform != 'cpu' or jax.process_count() > 1:
    return 1
  flops = ledger.flops_per_token(run.model, run.data.sequence_length).exact_causal * run.data.batch_tokens
  return int(min(max(DISPATCH_FLOPS // flops, 1), DISPATCH_STEPS))


@functools.lru_cache(maxsize=8)
def _program(model: Model, optimizer: Optim, execution: Execution, mesh: Mesh, capacity: int) -> Program:
  axes = decoder.axes(model)
  transform = optim.make(optimizer, axes)
  everywhere = meshes.replicated(mesh)
  param_shardings = meshes.shardings(axes, decoder.abstract(model)[1], mesh)
  batch_sharding = NamedSharding(mesh, PartitionSpec(None, *meshes.batch_sharding(mesh).spec))
  signal_sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

  def init(key: jax.Array) -> State:
    params = decoder.init(model, key)
    return create(params, transform.init(params))

  def update(state: State, batch: Batch, rate: jax.Array) -> State:
    mean, grads = _gradients(model, execution, mesh, state.params, batch)
    grads = _lay_out(grads, param_shardings, mesh)
    norm = optax.tree.norm(grads)
    updates, opt_state = transform.update(grads, state.opt_state, state.params, learning_rate=rate)
    finite = jnp.isfinite(mean) & jnp.isfinite(norm)
    first = ~finite & (state.diverged_step < 0)
    return State(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      loss_sum=state.loss_sum + mean,
      loss_count=state.loss_count + 1,
      last_loss=jnp.where(jnp.isfinite(mean), mean, state.last_loss),
      grad_norm=norm,
      diverged_step=jnp.where(first, state.step + 1, state.diverged_step),
    )

  def train(state, batches, rates, count, fresh, signals):
    with meshes.use(mesh):
      state = dataclasses.replace(
        state,
        loss_sum=jnp.where(fresh, 0.0, state.loss_sum),
        loss_count=jnp.where(fresh, 0, state.loss_count),
      )
      if capacity == 1:
        state = update(state, _take(batches, 0), rates[0])
      else:
        # The bound is an argument: one program for any count, so that numbers cannot depend on how steps are grouped.
        state = jax.lax.fori_loop(0, count, lambda i, s: update(s, _take(batches, i), rates[i]), state)
    train_loss = state.loss_sum / state.loss_count
    return state, Metrics(state.step, train_loss, state.last_loss, state.grad_norm, state.diverged_step, signals.max())

  def evaluate(params, batches):
    def add(sums, batch):
      nats, count = _loss(model, execution, params, batch)
      return (sums[0] + nats, sums[1] + count), None

    with meshes.use(mesh):
      (nats, count), _ = jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), batches)
    return nats / count

  options = platform.compiler_options(mesh.devices.flat[0].platform, meshes.axis_size(mesh, 'fsdp'))
  shapes = jax.eval_shape(init, jax.random.key(0))
  shardings = State(
    params=param_shardings,
    opt_state=optax.tree.map_params(
      transform, lambda _, s: s, shapes.opt_state, param_shardings, transform_non_params=lambda _: everywhere
    ),
    **{f.name: everywhere for f in dataclasses.fields(State) if f.name not in ('params', 'opt_state')},
  )
  return Program(
    mesh=mesh,
    capacity=capacity,
    shapes=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
    batch_sharding=batch_sharding,
    signal_sharding=signal_sharding,
    init=jax.jit(init, out_shardings=shardings),
    train=jax.jit(
      train,
      in_shardings=(shardings, batch_sharding, everywhere, everywhere, everywhere, signal_sharding),
      out_shardings=(shardings, everywhere),
      donate_argnums=0,
      compiler_options=options,
    ),
    evaluate=jax.jit(
      evaluate, in_shardings=(param_shardings, batch_sharding), out_shardings=everywhere, compiler_options=options
    ),
  )


def _take(batches: Batch, index: Any) -> Batch:
  return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), batches)


def _loss(model: Model, execution: Execution, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Summed nats and count of a batch's targets."""
  inputs_bt, targets_bt, mask_bt = batch.tokens_bt[:, :-1], batch.tokens_bt[:, 1:], batch.mask_bt
  segments_bt = None if batch.segments_bt is None else batch.segments_bt[:, :-1]
  positions_bt = None
  order_t = ring.balanced_order(inputs_bt.shape[1], execution.attention)
  if order_t is not None:
    arrays = (inputs_bt, targets_bt, mask_bt, segments_bt)
    inputs_bt, targets_bt, mask_bt, segments_bt = (None if x is None else x[:, order_t] for x in arrays)
    positions_bt = jnp.asarray(order_t)[None]
  x_btd = decoder.hidden(model, params, inputs_bt, segments_bt, positions_bt=positions_bt, execution=execution)
  return loss.cross_entropy(model, params, x_btd, targets_bt, mask_bt, execution.loss_chunk)


def _gradients(model: Model, execution: Execution, mesh: Mesh, params: Any, batch: Batch) -> tuple[jax.Array, Any]:
  """Mean nats per token of the batch and its gradient, taken over microbatches that weigh by their tokens."""
  parts = execution.microbatches
  total = batch.tokens_bt[:, 1:].size if batch.mask_bt is None else batch.mask_bt.sum(dtype=jnp.float32)

  def mean(params, part):
    return _loss(model, execution, params, part)[0] / total

  if parts == 1:
    return jax.value_and_grad(mean)(params, batch)
  # Microbatch i takes every parts-th row from row i, so that each device's rows stay where they are.
  split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

  def add(sums, part):
    return jax.tree.map(jnp.add, sums, jax.value_and_grad(mean)(params, part)), None

  start = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
  return jax.lax.scan(add, start, split)[0]


def _lay_out(tree: Any, shardings: Any, mesh: Mesh) -> Any:
  return tree if mesh.size == 1 else jax.lax.with_sharding_constraint(tree, shardings)


def batch_shapes(data: Data, stacked: int, sharding: NamedSharding, masked: bool = False) -> Batch:
  """The ShapeDtypeStructs of `stacked` batches, for lowering without data."""

  def shape(length, dtype):
    return jax.ShapeDtypeStruct((stacked, data.batch_size, length), dtype, sharding=sharding)

  t = data.sequence_length
  return Batch(
    tokens_bt=shape(t + 1, jnp.int32),
    segments_bt=shape(t + 1, jnp.int32) if data.document_mask else None,
    mask_bt=shape(t, jnp.bool_) if masked else None,
  )


def compile_program(program: Program, data: Data, validation: Batch, fresh: bool) -> Program:
  """The program with its parts compiled, side by side where there are cores: so that no step waits for the compiler.

  validation: stacked batches, or their shapes. fresh: whether `init` will be needed. What was compiled before in
  this process is taken again.
  """
  everywhere = meshes.replicated(program.mesh)

  def scalar(dtype, *shape, sharding=everywhere):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=program.batch_sharding), validation)
  wanted = {
    'train': (
      program.shapes,
      batch_shapes(data, program.capacity, program.batch_sharding),
      scalar(jnp.float32, program.capacity),
      scalar(jnp.int32),
      scalar(jnp.bool_),
      scalar(jnp.int32, program.mesh.size, sharding=program.signal_sharding),
    ),
    'evaluate': (program.shapes.params, shapes),
  }
  if fresh:
    wanted['init'] = (jax.eval_shape(lambda: jax.random.key(0)),)
  lowered = {}
  for name, arguments in wanted.items():
    key = (name, *jax.tree.leaves(arguments[1:]))
    if key not in program.compiled:
      lowered[key] = getattr(program, name).lower(*arguments)
  with concurrent.futures.ThreadPoolExecutor(1 if jax.process_count() > 1 else 3) as pool:
    program.compiled.update(zip(lowered, pool.map(lambda x: x.compile(), lowered.values()), strict=True))
  made = {name: program.compiled[(name, *jax.tree.leaves(arguments[1:]))] for name, arguments in wanted.items()}
  return dataclasses.replace(program, **made)


def snapshot(state: State) -> Metrics:
  """The metrics of a state between dispatches, as copies that outlive it."""
  scalars = {f.name: jnp.copy(getattr(state, f.name)) for f in dataclasses.fields(Metrics) if hasattr(state, f.name)}
  return Metrics(**scalars, train_loss=state.loss_sum / state.loss_count, signal=jnp.int32(0))
