"""TPU slices that are not here: their names, which of them exist, and compile-only devices for them.

A topology is written as the product names it: `v5e:4x4`, `v5p:4x4x8`; `4*v5e:16x16` is four slices joined by the
data-centre network. The compiler's own tool accepts shapes that no one can rent, so the shapes are checked here.

Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, tables of configurations and of key specifications.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import Any

from scaling.chips import CHIPS, Chip
from scaling.errors import UserError, unknown

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


def _cubes(largest: int) -> tuple[tuple[int, ...], ...]:
  """Shapes 4a x 4b x 4c with a <= b <= c and at most `largest` chips: cubes of 4x4x4 joined by optical switches."""
  edges = [4 * n for n in range(1, largest // 64 + 1)]
  return tuple(
    (a, b, c) for a in edges for b in edges if b >= a for c in edges if c >= b and a * b * c <= largest
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Family:
  shapes: tuple[tuple[int, ...], ...]
  dcn: float | None  # bytes/s of the data-centre network, per chip; None where it is not published per chip


# v5e: 6.4 Tbit/s per pod of 256 chips; v6e: 25.6 Tbit/s per pod of 256; v5p: 50 Gbit/s per chip.
_FAMILIES: dict[str, _Family] = {
  'v4': _Family((*_BELOW_A_CUBE, *_cubes(4096)), None),
  'v5e': _Family(_FLAT, 6.4e12 / 8 / 256),
  'v5p': _Family((*_BELOW_A_CUBE, *_cubes(6144)), 50e9 / 8),
  'v6e': _Family(_FLAT, 25.6e12 / 8 / 256),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """One or more equal slices of one kind of chip."""

  family: str
  shape: tuple[int, ...]  # chips along each physical axis of one slice
  slices: int = 1

  @property
  def chips(self) -> int:
    return self.slices * math.prod(self.shape)

  @property
  def chip(self) -> Chip:
    return CHIPS[self.family]

  @property
  def dcn(self) -> float | None:
    """Bytes per second of the data-centre network, per chip, one direction."""
    return _FAMILIES[self.family].dcn

  @property
  def wrap(self) -> tuple[bool, ...]:
    """Which physical axes close to a ring: those of 16 in 2-D slices, all of them in slices made of whole cubes."""
    if len(self.shape) == 2:
      return tuple(n == 16 for n in self.shape)
    return (min(self.shape) >= 4,) * 3

  def __str__(self) -> str:
    name = f'{self.family}:{"x".join(map(str, self.shape))}'
    return f'{self.slices}*{name}' if self.slices > 1 else name


def parse(text: str) -> Topology:
  """Reads 'v5e:4x4' or '4*v5e:16x16'. Raises UserError with the nearest slice that exists."""
  match = re.fullmatch(r'(?:(\d+)\*)?([a-z0-9]+)[:=](\d+(?:x\d+)*)', text.strip().lower())
  if not match:
    match = re.fullmatch(r'(?:(\d+)\*)?([a-z]\w*)(?:-(\d+))?', text.strip().lower())
    if not match or match[2] not in _FAMILIES or not match[3]:
      raise UserError(
        f'topology {text!r}: write a chip and a shape, for instance v5e:4x4 or v5p:4x4x4; chips: {", ".join(_FAMILIES)}'
      )
    # v4 and v5p slices are sold by TensorCores, two a chip.
    count = int(match[3]) // (2 if match[2] in ('v4', 'v5p') else 1)
    raise UserError(f'topology {text!r} names no shape: take {nearest(match[2], (max(count, 1),))}')
  slices, family, sizes = int(match[1] or 1), match[2], tuple(int(n) for n in match[3].split('x'))
  if family not in _FAMILIES:
    raise unknown('TPU chip', family, _FAMILIES)
  if slices < 1:
    raise UserError(f'topology {text!r} has no slice: write 2*{family}:... for two')
  shape = _canonical(family, sizes)
  if shape is None:
    raise UserError(f'topology {text!r} does not exist: the nearest is {nearest(family, sizes, slices)}')
  if slices > 1 and _FAMILIES[family].dcn is None:
    raise UserError(
      f'topology {text!r}: no network rate between {family} slices is published: take one slice, '
      f'for instance {nearest(family, (slices * math.prod(sizes),))}'
    )
  return Topology(family, shape, slices)


def _canonical(family: str, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
  """The shape as it is listed: axes in any order are the same slice; None where no such slice exists."""
  return next((s for s in _FAMILIES[family].shapes if sorted(s) == sorted(sizes)), None)


def nearest(family: str, sizes: tuple[int, ...], slices: int = 1) -> Topology:
  """The slice of this family nearest in chips (in ratio), then in shape. Past the largest flat slice: several."""
  shapes = _FAMILIES[family].shapes
  wanted, largest = math.prod(sizes), max(shapes, key=math.prod)
  if slices == 1 and wanted > math.prod(largest) and _FAMILIES[family].dcn:
    return Topology(family, largest, math.ceil(wanted / math.prod(largest)))

  def distance(shape: tuple[int, ...]) -> tuple[float, float]:
    ratio = abs(math.log(math.prod(shape) / max(wanted, 1)))
    return round(ratio, 6), sum(abs(a - b) for a, b in zip(sorted(shape), sorted(sizes), strict=False)) + max(shape)

  return Topology(family, min(shapes, key=distance), slices)


def of_size(family: str, count: int) -> Topology:
  """The slice of `count` chips nearest to a cube. Raises UserError where there is none of that size."""
  if family not in _FAMILIES:
    raise unknown('TPU chip', family, _FAMILIES)
  found = nearest(family, (count,))
  if found.chips != count:
    raise UserError(f'there is no {family} slice of {count} chips: the nearest is {found} with {found.chips}')
  same = [s for s in _FAMILIES[family].shapes if math.prod(s) * found.slices == count]
  return dataclasses.replace(found, shape=min(same, key=sum))


def devices(topology: Topology) -> list[Any]:
  """Compile-only devices of the topology, one a chip. Raises UserError where libtpu is missing."""
  return list(_description(topology).devices)


@functools.cache
def _description(topology: Topology) -> Any:
  prepare()
  from jax.experimental import topologies

  one = dataclasses.replace(topology, slices=1)
  hosts = (1, 1, 1) if one.chips == 1 else (2, 2, 1)
  options: dict[str, Any] = {'chips_per_host_bounds': hosts, 'wrap': (*topology.wrap, False)[:3]}
  if topology.family == 'v4':
    options['chip_config_name'] = 'megacore'  # both cores of a chip act as one device, as jax shows a real v4
  if topology.slices > 1:
    options['num_slices'] = topology.slices
  try:
    return topologies.get_topology_desc(platform='tpu', topology_name=str(one), **options)
  except Exception as error:
    line = str(error).strip().splitlines()[0]
    raise UserError(f'topology {topology}: the TPU compiler refuses it: {line}') from None


def available() -> bool:
  """Whether the TPU compiler is installed."""
  try:
    return importlib.util.find_spec('libtpu') is not None
  except (ImportError, ValueError):  # hidden by a finder, or half imported
    return False


def version() -> str | None:
  """The installed version of libtpu."""
  import importlib.metadata

  try:
    return importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    return None


def prepare() -> None:
  """Lets libtpu compile without a TPU: no questions to a metadata server, no fight over the device lock.

  Only defaults: what the environment already says stays. Where a TPU is attached its own settings are in place.
  """
  if not available():
    raise UserError('the TPU compiler is missing: pip install -e ".[tpu]" (libtpu runs on a plain CPU machine too)')
  import jax

  defaults = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }
  for name, value in defaults.items():
    os.environ.setdefault(name, value)
  # Compiling needs no device of this machine, and must not take one that a training holds.
  if not os.environ.get('JAX_PLATFORMS') and not _initialised():
    jax.config.update('jax_platforms', 'cpu')


def _initialised() -> bool:
  from jax._src import xla_bridge

  return xla_bridge.backends_are_initialized()
