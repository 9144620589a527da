"""The device mesh: its axes, the one table from logical axes to mesh axes, and the shardings that follow.

Mesh axes, outermost first:
  runs      lanes of packed runs (reserved)
  data      whole copies of the model; the batch is split
  fsdp      the batch is split, and so is each parameter and its optimiser state (ZeRO-3, arXiv:1910.02054)
  expert    experts of a mixture (reserved)
  context   the sequence is split; attention runs in a ring (see ring.py)
  sequence  tensor parallel as `model`, and the activations between blocks are split over the sequence
            (arXiv:2205.05198, section 4.2.2)
  model     tensor parallel over heads, MLP and vocabulary (arXiv:1909.08053)
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scaling.errors import UserError, unknown

AXES = ('runs', 'data', 'fsdp', 'expert', 'context', 'sequence', 'model')
RESERVED = ('runs', 'expert')
TENSOR = ('sequence', 'model')  # together they divide heads, MLP and vocabulary

# From logical axes to mesh axes, for parameters and activations alike. A mesh axis shards one dimension of an array:
# the logical axis that stands first here takes it. So `embed` is split over fsdp in a parameter, and is whole
# in an activation, where `batch` has taken it; `sequence` is split over the tensor axes between blocks only.
RULES: dict[str, tuple[str, ...]] = {
  'runs': ('runs',),
  'batch': ('data', 'fsdp'),
  'vocab': TENSOR,
  'heads': TENSOR,
  'kv_heads': TENSOR,
  'mlp': TENSOR,
  'experts': ('expert',),
  'sequence': ('context', 'sequence'),
  'embed': ('fsdp',),
  'head_dim': (),
  'layers': (),
  'positions': (),
  'norm': (),
}

_active: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar('mesh', default=None)


@dataclasses.dataclass(frozen=True)
class MeshSpec:
  """The size of each mesh axis; 1 where an axis is not used."""

  data: int = 1
  fsdp: int = 1
  model: int = 1
  context: int = 1
  sequence: int = 1
  expert: int = 1
  runs: int = 1

  @property
  def size(self) -> int:
    return math.prod(self.shape.values())

  @property
  def shape(self) -> dict[str, int]:
    return {name: getattr(self, name) for name in AXES}

  def __str__(self) -> str:
    used = [f'{name}={size}' for name, size in self.shape.items() if size > 1]
    return ','.join(used) or 'data=1'

  @classmethod
  def parse(cls, text: str) -> 'MeshSpec':
    """Reads 'data=4,model=2'. Raises UserError for an unknown axis or a size that is not a whole number."""
    sizes: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(','))):
      name, _, size = (p.strip() for p in part.partition('='))
      if name not in AXES:
        raise unknown('mesh axis', name, AXES)
      if name in sizes:
        raise UserError(f'mesh {text!r} names the axis {name} twice: give each axis once')
      if not size.isdecimal() or int(size) < 1:
        raise UserError(f'mesh axis {part!r}: its size must be a whole number from 1, for instance {name}=2')
      if name in RESERVED and int(size) > 1:
        raise UserError(f'mesh axis {part!r} is reserved and nothing uses it yet: take data, fsdp, model or context')
      sizes[name] = int(size)
    return cls(**sizes)

  @classmethod
  def auto(cls, n_devices: int, model: Any = None, platform: str | None = None) -> 'MeshSpec':
    """A mesh for the device count and the model (a config.Model).

    Fully sharded on GPU and TPU, as far as the width divides; data parallel on CPU and for models so small that
    their state is no burden and gathering them would only cost time.
    """
    if n_devices == 1:
      return cls()
    platform = platform or jax.default_backend()
    if platform == 'cpu' or model is None or 12 * model.layers * model.width**2 < TINY:
      return cls(data=n_devices)
    fsdp = math.gcd(n_devices, model.width)
    return cls(data=n_devices // fsdp, fsdp=fsdp)


TINY = (
  10_000_000  # parameters; 16 bytes each of weights, gradient and Adam state make 160 MB, little on any accelerator
)


def resolve(text: str, n_devices: int, model: Any = None) -> MeshSpec:
  """The mesh an Execution asks for: 'auto' or sizes, checked against the device count."""
  if text in ('', 'auto'):
    return MeshSpec.auto(n_devices, model)
  spec = MeshSpec.parse(text)
  _check_size(spec, n_devices)
  return spec


def _check_size(spec: MeshSpec, n_devices: int) -> None:
  if spec.size == n_devices:
    return
  others = spec.size // spec.data
  if n_devices % others == 0:
    hint = f'take {dataclasses.replace(spec, data=n_devices // others)}'
  else:
    hint = f'take sizes whose product is {n_devices}, for instance data={n_devices}'
  raise UserError(f'mesh {spec} has {spec.size} devices, and there are {n_devices}: {hint}')


def make(spec: MeshSpec, devices: Sequence[Any] | None = None) -> Mesh:
  """The mesh over `devices` (all, when None), its axes of Auto type. Raises UserError where the numbers differ."""
  devices = list(jax.devices() if devices is None else devices)
  _check_size(spec, len(devices))
  shape = tuple(spec.shape.values())
  if devices[0].platform == 'tpu':
    from jax.experimental import mesh_utils

    grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
  else:
    grid = np.asarray(devices).reshape(shape)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def use(mesh: Mesh | None) -> Iterator[None]:
  """Makes `mesh` the one that `constrain` and the attention kernels see while tracing."""
  token = _active.set(mesh)
  try:
    yield
  finally:
    _active.reset(token)


def active() -> Mesh | None:
  """The mesh of the innermost `use`, or None."""
  return _active.get()


def axis_size(mesh: Mesh | None, *names: str) -> int:
  """The product of the sizes of these mesh axes; 1 without a mesh."""
  return 1 if mesh is None else math.prod(mesh.shape.get(name, 1) for name in names)


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh, strict: bool = True) -> PartitionSpec:
  """Where each dimension of an array with these logical axes lies.

  `strict`: a dimension that its mesh axes do not divide raises UserError with the numbers; otherwise it stays whole.
  Key and value heads fewer than the tensor axes stay whole in either case: each device then holds them all.
  """
  if len(axes) != len(shape):
    raise UserError(f'logical axes {tuple(axes)} name {len(axes)} dimensions, and the array has shape {tuple(shape)}')
  for name in axes:
    if name is not None and name not in RULES:
      raise unknown('logical axis', name, RULES)
  order = list(RULES)
  entries: list[Any] = [None] * len(axes)
  taken: set[str] = set()
  for i in sorted((i for i, name in enumerate(axes) if name), key=lambda i: order.index(axes[i])):
    names = tuple(n for n in RULES[axes[i]] if n not in taken and mesh.shape.get(n, 1) > 1)
    parts = math.prod(mesh.shape[n] for n in names)
    if parts == 1:
      continue
    if shape[i] % parts:
      if strict and axes[i] != 'kv_heads':
        raise _uneven(axes[i], shape[i], names, parts, mesh)
      continue
    taken.update(names)
    entries[i] = names[0] if len(names) == 1 else names
  return PartitionSpec(*entries)


def _uneven(axis: str, size: int, names: tuple[str, ...], parts: int, mesh: Mesh) -> UserError:
  bigger = -(-size // parts) * parts
  return UserError(
    f'{axis} has size {size}, which mesh {"x".join(names)}={parts} does not divide: '
    f'the nearest that works is {smaller_axis(size, names, dict(mesh.shape))}, or {axis} of {bigger}'
  )


def smaller_axis(size: int, names: Sequence[str], shape: Mapping[str, int]) -> str:
  """The largest size of the last of these mesh axes with which they divide `size` on as many devices; `data` takes
  what is left over. As 'model=2, as in data=4,model=2'; the other axes become 1 where nothing else helps.
  """
  total, last = math.prod(shape.values()), names[-1]
  sizes = {name: shape.get(name, 1) for name in AXES}
  for others in ({}, dict.fromkeys(names[:-1], 1)):
    rest = math.prod((sizes | others)[name] for name in names[:-1])
    fixed = math.prod((sizes | others)[name] for name in AXES if name not in (last, 'data'))
    fits = [d for d in range(1, shape[last] + 1) if size % (d * rest) == 0 and total % (d * fixed) == 0]
    if fits:
      near = max(fits)
      spec = MeshSpec(**sizes | others | {last: near, 'data': total // (fixed * near)}) if last != 'data' else ''
      return f'{last}={near}' + (f', as in {spec}' if spec else '')
  return f'{last}=1'


def check_divides(run: Any, execution: Any, shape: Mapping[str, int]) -> None:
  """Raises UserError, naming the numbers, where an axis of the model or of the batch does not divide over the mesh.

  run: a config.Run; execution: a config.Execution; shape: sizes of all mesh axes by name.
  """
  model, data = run.model, run.data
  tensor_axes = [a for a in TENSOR if shape[a] > 1]
  tensor = math.prod(shape[a] for a in TENSOR)
  for name, size in (('heads', model.heads), ('mlp_width', model.mlp_size), ('vocab', model.vocab)):
    if size % tensor:
      hint = f'take {smaller_axis(size, tensor_axes, shape)}'
      if name == 'vocab':
        hint += f', or model.vocab={-(-size // tensor) * tensor}'
      raise UserError(f'model.{name}={size} does not divide over {"x".join(tensor_axes)}={tensor}: {hint}')
  if model.width % shape['fsdp']:
    hint = smaller_axis(model.width, ['fsdp'], shape)
    raise UserError(f'model.width={model.width} does not divide over fsdp={shape["fsdp"]}: take {hint}')
  parts = shape['data'] * shape['fsdp'] * execution.microbatches
  if data.batch_size % parts:
    raise UserError(
      f'data.batch_size={data.batch_size} does not divide over data={shape["data"]} x fsdp={shape["fsdp"]} x '
      f'microbatches={execution.microbatches}: take a multiple of {parts}'
    )
  pieces = shape['context'] * shape['sequence']
  if data.sequence_length % pieces:
    raise UserError(
      f'data.sequence_length={data.sequence_length} does not divide over context={shape["context"]} x '
      f'sequence={shape["sequence"]}: take a multiple of {pieces}, for instance '
      f'{-(-data.sequence_length // pieces) * pieces}'
    )


def _is_axes(x: Any) -> bool:
  return x is None or (isinstance(x, tuple) and all(n is None or isinstance(n, str) for n in x))


def shardings(axes_tree: Any, shapes_tree: Any, mesh: Mesh) -> Any:
  """NamedShardings for parameters: `axes_tree` holds a tuple of logical names for each leaf of `shapes_tree`.

  Every parameter must be covered. Raises UserError naming the parameter for missing axes, or an uneven division.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes_tree)
  axes_leaves = jax.tree_util.tree_leaves(axes_tree, is_leaf=_is_axes)
  if len(axes_leaves) != len(leaves):
    raise UserError(f'{len(leaves)} parameters have {len(axes_leaves)} entries of logical axes: name the axes of each')
  out = []
  for (path, leaf), axes in zip(leaves, axes_leaves, strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    if axes is None:
      raise UserError(f'parameter {name} has no logical axes: name one for each of its {len(leaf.shape)} dimensions')
    try:
      out.append(NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh)))
    except UserError as error:
      raise UserError(f'parameter {name}: {error}') from None
  return jax.tree_util.tree_unflatten(treedef, out)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
  """Asks that `x` lie on the active mesh as its logical axes say; does nothing without a mesh of several devices."""
  mesh = active()
  if mesh is None or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition_spec(axes, x.shape, mesh, strict=False)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of token arrays [batch, time]: the batch over data and fsdp; the sequence whole, as T + 1 seldom divides."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
  """Of scalars and of anything that each device holds whole."""
  return NamedSharding(mesh, PartitionSpec())
