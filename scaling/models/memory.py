"""Bytes per device of one training step, estimated from shapes alone: nothing is compiled or allocated.

What the backward pass keeps is not guessed: one block is linearised at the shapes that a device holds, under the remat
policy and attention that will run, and what JAX would keep is added up. The working set of the backward pass through
one block is taken as what the block keeps without a policy. The tests hold the total to the compiler's.
"""

import dataclasses
import functools
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Literal

from scaling import config
from scaling.errors import UserError
from scaling.models import decoder
from scaling.models.layers import rotation_angles
from scaling.parallel import kernels, mesh, remat

# What `auto` stands for, where the kernel takes the run's features.
_AUTO_ATTENTION = {'cpu': 'blocks', 'gpu': 'cudnn', 'tpu': 'splash'}
# Of programs compiled for TPU, six shapes of 100M to 70B under remat=full: of what JAX would keep of the block whose
# gradient is being taken they hold this share at once (0.54 to 0.86), as casts and norms are fused away; and beside
# the logits of a chunk their gradient in bfloat16.
TPU_WORKING, TPU_LOGITS = 0.75, 1.5
LANES = 128  # of a tile in a TPU's memory
FLASH = ('cudnn', 'splash', 'ring')  # keep a row sum for each query and no scores


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes per device."""

  params: int  # float32
  optimizer: int  # AdamW: two float32 moments
  gradients: int  # float32; twice with microbatches: the sum and the present one
  activations: int  # kept from forward to backward, and the working set of one block
  logits: int  # of one chunk of the cross-entropy, float32, and what of their gradient and the head's is beside them
  copies: int  # the output matrix in the compute dtype, gathered over fsdp
  update: int  # what the optimiser needs while it works, after activations are gone

  @property
  def total(self) -> int:
    step = max(self.activations + self.logits + self.copies, self.update)
    return self.params + self.optimizer + self.gradients + step

  def to_dict(self) -> dict[str, int]:
    return {**dataclasses.asdict(self), 'total': self.total}


def estimate(
  run: config.Run, execution: config.Execution, mesh_shape: dict[str, int], platform: str | None = None
) -> Memory:
  """Bytes per device of a training step of `run`.

  mesh_shape: sizes of mesh axes by name (data, fsdp, model, sequence, context), 1 where absent. platform: cpu, gpu or
  tpu; None: the default one. Raises UserError where an axis does not divide.
  """
  model, data = run.model, run.data
  platform = platform or kernels.target_platform()
  size = lambda *names: math.prod(mesh_shape.get(name, 1) for name in names)  # noqa: E731
  parts = size('data', 'fsdp') * execution.microbatches
  if data.batch_size % parts:
    raise UserError(
      f'data.batch_size={data.batch_size} does not divide over data x fsdp x microbatches = {parts}: '
      f'take a multiple of {parts}'
    )
  batch, time, tensor = data.batch_size // parts, data.sequence_length // size('context'), size(*mesh.TENSOR)
  params = _param_bytes(model, tuple(sorted(mesh_shape.items())))
  local = _local(model, platform, tensor)
  implementation = execution.attention
  if implementation == 'auto':
    implementation = _AUTO_ATTENTION[platform] if size('context') == 1 else 'ring'
  kept = working = 0
  period = model.window_every if model.window else 1
  for i in range(period):
    layers = len(range(i, model.layers, period))
    arguments = (platform, local, time, model.layer_window(i), implementation, data.document_mask, size('sequence'))
    mine, weights = _kept(*arguments, execution.remat)
    everything, _ = _kept(*arguments, 'none')
    kept += layers * (mine * batch + weights // size('fsdp'))
    # Without a policy: about as much again in gradients of what one block keeps. With one: what is recomputed.
    working = max(working, (everything - (mine if execution.remat != 'none' else 0)) * batch)
  cpu = platform == 'cpu'
  unrolled = not decoder.scans(model, execution, platform)
  if cpu and unrolled:
    # Seen in compiled programs: the working set is the gradients inside one MLP; of the arrays that GELU keeps for
    # its derivative, one is computed again.
    hidden = batch * time * local.mlp_size * jnp.dtype(local.dtype).itemsize
    kept, working = kept - (model.layers * hidden if model.mlp == 'gelu' else 0), 2 * hidden
  gradients = params * (2 if execution.microbatches > 1 else 1)
  logits, summed = _logits(run, execution, platform, batch, size)
  vocab_bytes = -(-model.vocab // tensor) * model.width * jnp.dtype(local.dtype).itemsize
  gathered = local.dtype != 'float32' or size('fsdp') > 1
  # Seen in compiled programs: XLA lets logits and the working set share their bytes on TPU and not on CPU, and holds
  # the update of the parameters beside the gradients on CPU.
  if platform == 'tpu':
    logits = int(TPU_LOGITS * logits) + summed
    working = max(TPU_WORKING * working - logits, 0)
  else:
    working = working if cpu else max(working - logits, 0)
    logits = logits * (2 if cpu else 1) + summed
  return Memory(
    params=params,
    optimizer=2 * params,
    gradients=gradients,
    activations=int(kept + working),
    logits=logits,
    copies=vocab_bytes if gathered else 0,
    update=params * (1 if unrolled else 2) if cpu else 0,
  )


def _logits(run: config.Run, execution: config.Execution, platform: str, batch: int, size: Any) -> tuple[int, int]:
  """Bytes of one chunk's float32 logits, and of the chunk's gradient of the output matrix where there are several."""
  from scaling.train import loss  # which imports the models

  model, time = run.model, run.data.sequence_length
  vocab = -(-model.vocab // size(*mesh.TENSOR))
  limit = execution.loss_chunk or max(loss.LOGITS_BYTES[platform] // (4 * batch * vocab), 1)
  chunk = next(n for n in range(min(limit, time), 0, -1) if time % n == 0)
  return 4 * batch * chunk * vocab // size('context'), 0 if chunk == time else 4 * vocab * model.width


def _local(model: config.Model, platform: str, tensor: int) -> config.Model:
  """The model whose blocks have the shapes that one device of `tensor` computes on."""
  for name, whole in (('heads', model.heads), ('mlp_width', model.mlp_size)):
    if whole % tensor:
      raise UserError(f'model.{name}={whole} does not divide over {tensor} devices of the model axis')
  heads, kv_heads = model.heads // tensor, model.kv_head_count
  kv_heads = kv_heads // tensor if kv_heads % tensor == 0 else math.gcd(kv_heads, heads)
  dtype = model.dtype if model.dtype != 'auto' else 'float32' if platform == 'cpu' else 'bfloat16'
  return dataclasses.replace(
    model, heads=heads, kv_heads=kv_heads, head_dim=model.head_size, mlp_width=model.mlp_size // tensor, dtype=dtype
  )


@functools.lru_cache(maxsize=4096)
def _param_bytes(model: config.Model, mesh_shape: tuple[tuple[str, int], ...]) -> int:
  """Float32 bytes of the parameters on each device, by the one table of shardings."""
  shape = types.SimpleNamespace(shape=dict(mesh_shape))
  is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
  total = 0
  structs, named = decoder.abstract(model)[1], decoder.axes(model)
  for struct, names in zip(jax.tree.leaves(structs), jax.tree.leaves(named, is_leaf=is_axes), strict=True):
    spec = mesh.partition_spec(names, struct.shape, shape)
    used = [a for entry in spec for a in ((entry,) if isinstance(entry, str) else entry or ())]
    total += struct.size * 4 // math.prod(dict(mesh_shape)[a] for a in used)
  return total


@functools.lru_cache(maxsize=4096)
def _kept(
  platform: str,
  model: config.Model,
  time: int,
  window: int | None,
  implementation: str,
  segmented: bool,
  sequence: int,
  policy: str,
) -> tuple[int, int]:
  """Bytes that one block keeps for its backward pass: per sequence of the batch, and of copies of its weights.

  Flash kernels are traced as the plain form, without what has a query and a key dimension.
  """
  flash = implementation in FLASH
  # A length that is no other dimension, so that scores and weights are told apart; at most a few longer.
  while time in (model.width, model.mlp_size, model.head_size, model.heads, model.kv_head_count):
    time += 1
  template = nnx.eval_shape(lambda: decoder.Block(model, jax.random.key(0)))
  graphdef, state = nnx.split(template)
  x_btd = jax.ShapeDtypeStruct((1, time, model.width), jnp.dtype(model.dtype))
  rotation = jax.eval_shape(lambda: rotation_angles(model, jnp.arange(time)[None]))
  rotation = rotation if model.positions == 'rotary' else None
  segments_bt = jax.ShapeDtypeStruct((1, time), jnp.int32) if segmented else None
  checkpoint = remat.policy(policy)

  def linearise(x_btd, params, rotation, segments_bt):
    def run(x_btd, params):
      block = nnx.merge(graphdef, params)
      return block(x_btd, rotation, segments_bt, window, 'reference' if flash else implementation)

    if checkpoint is not None:
      run = jax.checkpoint(run, policy=checkpoint, prevent_cse=False)
    return jax.tree.leaves(jax.vjp(run, x_btd, params)[1])

  # What the model looks at to take the forms of that platform.
  device = types.SimpleNamespace(platform=platform)
  stand_in = types.SimpleNamespace(size=1, shape={}, devices=np.array([device], dtype=object))
  with mesh.use(stand_in):
    jaxpr = jax.make_jaxpr(linearise)(x_btd, nnx.to_pure_dict(state), rotation, segments_bt).jaxpr
  from_input = {jaxpr.invars[0]}
  for equation in jaxpr.eqns:
    if any(v in from_input for v in equation.invars if not isinstance(v, Literal)):
      from_input.update(equation.outvars)
  arguments = set(jaxpr.invars[1:])
  activations = weights = 0
  scores = []
  for v in {v for v in jaxpr.outvars if not isinstance(v, Literal)} - arguments:
    shape, size = v.aval.shape, v.aval.size * v.aval.dtype.itemsize
    if platform == 'tpu' and shape[-1:] == (model.head_size,):  # rows of a head are padded to the lanes of a tile
      size = size // shape[-1] * (-(-shape[-1] // LANES) * LANES)
    if shape.count(time) >= 2 and model.width != time:
      scores.append(size)
    elif v in from_input:
      # Between blocks the sequence may be split further over the axis of that name.
      activations += size // (sequence if shape[-1] == model.width else 1)
    elif time not in shape:
      weights += size
  if not flash:  # of the steps of a softmax JAX keeps more than XLA does, which recomputes the cheap ones
    activations += sum(sorted(scores)[-2:])
  if flash and policy == 'none':  # the row sums
    activations += 4 * model.heads * time
  return activations, weights
