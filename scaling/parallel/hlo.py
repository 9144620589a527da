"""Reads a compiled program's text: how often each computation runs, its collectives, its traffic to main memory.

XLA's own cost analysis counts the body of a loop once; here it counts as often as the loop runs, so that a scan over
layers is accounted for in full. Sizes are those of the logical arrays, without the padding of TPU tiles.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

_BITS = {
  'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 's32': 32, 'u32': 32, 's64': 64, 'u64': 64,
  'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64, 'c64': 64, 'c128': 128,
}  # fmt: skip
_KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', 'ragged-all-to-all')
_ARRAY = re.compile(r'\b([a-z]+\d*(?:e\d\w*)?)\[([\d,<= ]*)\](\{[^{}]*\})?')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array type: element type, dimensions, and the memory space of its layout (0: main memory)."""

  dtype: str
  shape: tuple[int, ...]
  space: int

  @property
  def bytes(self) -> int:
    bits = _BITS.get(self.dtype, 8 if self.dtype.startswith('f8') else 0)
    return math.prod(self.shape) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    return arrays(self.type)

  def attribute(self, name: str) -> str | None:
    match = re.search(rf'\b{name}=%?([\w.-]+)', self.attributes)
    return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of one loop or entry body: its payload per device, its groups, how often it runs in a step."""

  kind: str
  bytes: int  # of the whole array that a group gathers, reduces, scatters or exchanges; per device and run
  group: tuple[int, ...]  # positions of one group's members in the flattened mesh
  times: int
  overlapped: bool  # the compiler started it early, to run beside compute


def arrays(type_text: str) -> tuple[Array, ...]:
  """The arrays of a type, those of a tuple flattened."""
  out = []
  for match in _ARRAY.finditer(type_text):
    space = re.search(r'S\((\d+)\)', match[3] or '')
    dims = tuple(int(d.strip('<= ')) for d in match[2].split(',') if d.strip('<= '))
    out.append(Array(match[1], dims, int(space[1]) if space else 0))
  return tuple(out)


class Program:
  """A parsed module. `counts` says how often each computation outside fusions runs in one step."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = ''
    body: dict[str, Instruction] = {}
    for line in text.splitlines():
      if line.startswith((' ', '\t')):
        instruction = _instruction(line)
        if instruction:
          body[instruction.name] = instruction
      elif match := re.match(r'(ENTRY )?%?([\w.-]+) .*\{\s*$', line):
        body = self.computations.setdefault(match[2], {})
        self.entry = match[2] if match[1] else self.entry
    self.counts: dict[str, int] = {}
    if self.entry:
      self._count(self.entry, 1)

  def _count(self, name: str, times: int) -> None:
    self.counts[name] = self.counts.get(name, 0) + times
    for instruction in self.computations.get(name, {}).values():
      if instruction.opcode == 'while':
        self._count(instruction.attribute('body'), times * self.trips(instruction, name))
      elif instruction.opcode == 'call':
        self._count(instruction.attribute('to_apply'), times)
      elif instruction.opcode == 'conditional':
        listed = re.search(r'branch_computations=\{([^}]*)\}', instruction.attributes)
        branches = [b.strip().lstrip('%') for b in listed[1].split(',')] if listed else []
        branches += [b for key in ('true_computation', 'false_computation') if (b := instruction.attribute(key))]
        for branch in branches:  # each counted as if taken
          self._count(branch, times)

  def trips(self, loop: Instruction, parent: str) -> int:
    """Iterations of a while loop: as the compiler noted, else from its condition `counter < constant`; else 1."""
    noted = re.search(r'known_trip_count\W+n\W+(\d+)', loop.attributes)
    if noted:
      return int(noted[1])
    bounds = []
    pending = [loop.attribute('condition')]
    while pending:
      for instruction in self.computations.get(pending.pop() or '', {}).values():
        if instruction.opcode == 'constant' and instruction.type.startswith(('s32[]', 'u32[]', 's64[]')):
          bounds.append(int(re.search(r'-?\d+', instruction.operands[0] if instruction.operands else '1')[0]))
        elif instruction.opcode in ('fusion', 'call'):
          pending.append(instruction.attribute('calls') or instruction.attribute('to_apply'))
    return max([1, *bounds])

  def collectives(self) -> list[Collective]:
    """Every collective of a step. One that the compiler split over several fusions is listed once."""
    out: dict[tuple, Collective] = {}
    for name, times in self.counts.items():
      for holder, instruction, beside in self._reach(name):
        kind = instruction.opcode.removesuffix('-start')
        if kind not in _KINDS:
          continue
        beside |= instruction.opcode.endswith('-start')
        channel = re.search(r'channel_id=(\d+)', instruction.attributes)
        key = (name, kind, channel[1] if channel else (holder, instruction.name))
        group = _group(instruction.attributes)
        size, kind = self._payload(holder, instruction, kind, len(group))
        known = out.get(key)
        out[key] = Collective(kind, size, group, times, beside or bool(known and known.overlapped))
    return list(out.values())

  def _reach(self, name: str, beside: bool = False) -> Iterator[tuple[str, Instruction, bool]]:
    """Instructions of a computation and of its fusions, with whether they run beside compute."""
    body = self.computations.get(name, {})
    beside = beside or any('AsyncCollective' in i.attributes for i in body.values() if i.opcode == 'custom-call')
    for instruction in body.values():
      yield name, instruction, beside
      if instruction.opcode in ('fusion', 'async-start'):
        called = instruction.attribute('calls') or instruction.attribute('called_computation')
        yield from self._reach(called or '', beside or instruction.opcode == 'async-start')

  def _payload(self, holder: str, instruction: Instruction, kind: str, members: int) -> tuple[int, str]:
    body = self.computations[holder]
    given = sum(a.bytes for o in instruction.operands if o in body for a in body[o].arrays)
    if kind == 'all-gather':
      return given * members, kind
    if kind == 'all-reduce' and 'scatter' in holder:  # an all-reduce of which each device keeps its slice
      return given, 'reduce-scatter'
    return given, kind

  def traffic(self) -> int:
    """Bytes that a step reads from and writes to main memory, per device: operands and results of what runs.

    A slice that a fusion takes of a larger array counts as the slice. What a kernel reads twice counts once.
    """
    return sum(
      times * sum(self._traffic(body, i) for i in body.values())
      for name, times in self.counts.items()
      for body in [self.computations.get(name, {})]
    )

  def _traffic(self, body: dict[str, Instruction], instruction: Instruction) -> int:
    op = instruction.opcode
    if op in _FREE or op.endswith(('-done', '-update')):
      return 0
    read = [_main(body[o].arrays) if o in body else 0 for o in instruction.operands]
    if op in ('copy-start', 'slice-start', 'dynamic-slice-start'):
      moved = min((a.bytes for a in instruction.arrays if len(a.shape) and a.bytes), default=0)
      ends = [a for a in instruction.arrays if a.bytes >= moved and a.dtype in _BITS and a.shape][:2]
      return moved * sum(a.space == 0 for a in ends)
    if op in ('dynamic-slice', 'slice', 'gather'):
      return 2 * _main(instruction.arrays)
    if op == 'dynamic-update-slice':
      return 2 * read[1]
    if op.removesuffix('-start') in _KINDS:
      return sum(read) + (_main(instruction.arrays) if not op.endswith('-start') else 0)
    if op == 'fusion':
      inner = self.computations.get(instruction.attribute('calls') or '', {})
      return _fusion_reads(inner, read) + _fusion_writes(inner, instruction)
    return sum(read) + _main(instruction.arrays)


_FREE = (
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all',
  'partition-id', 'replica-id', 'iota', 'opt-barrier', 'add-dependency', 'domain',
)  # fmt: skip


def _main(types: tuple[Array, ...]) -> int:
  return sum(a.bytes for a in types if a.space == 0)


def _fusion_reads(inner: dict[str, Instruction], read: list[int]) -> int:
  total = 0
  parameters = {
    int(i.operands[0]): i for i in inner.values() if i.opcode == 'parameter' and i.operands and i.operands[0].isdigit()
  }
  for index, size in enumerate(read):
    parameter = parameters.get(index)
    if not size or parameter is None:
      total += size
      continue
    users, names = [], [parameter.name]
    while names:  # through bitcasts
      name = names.pop()
      for i in inner.values():
        if name in i.operands:
          if i.opcode == 'bitcast':
            names.append(i.name)
          else:
            users.append((i, i.operands.index(name)))
    if users and all(i.opcode in ('dynamic-slice', 'slice', 'gather') and at == 0 for i, at in users):
      total += min(size, sum(sum(a.bytes for a in i.arrays) for i, _ in users))
    elif users and all(i.opcode == 'dynamic-update-slice' and at == 0 for i, at in users):
      pass  # updated in place
    else:
      total += size
  return total


def _fusion_writes(inner: dict[str, Instruction], fusion: Instruction) -> int:
  root = next((i for i in inner.values() if i.root), None)
  results = [inner.get(o) for o in root.operands] if root is not None and root.opcode == 'tuple' else [root]
  if len(results) != len(fusion.arrays):
    return _main(fusion.arrays)
  total = 0
  for result, array in zip(results, fusion.arrays, strict=True):
    while result is not None and result.opcode == 'bitcast':
      result = inner.get(result.operands[0])
    if array.space != 0:
      continue
    if result is not None and result.opcode == 'dynamic-update-slice' and result.operands[1] in inner:
      total += sum(a.bytes for a in inner[result.operands[1]].arrays)
    else:
      total += array.bytes
  return total


def _matching(text: str, start: int) -> int:
  depth = 0
  for at in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[at], 0)
    if depth == 0:
      return at
  return len(text)


def _instruction(line: str) -> Instruction | None:
  match = re.match(r'\s+(ROOT )?%?([\w.-]+) = ', line)
  if not match:
    return None
  at = match.end()
  end = _matching(line, at) + 1 if line[at] == '(' else line.find(' ', at)
  opened = line.find('(', end)
  closed = _matching(line, opened)
  inside = re.sub(r'/\*.*?\*/', '', line[opened + 1 : closed])
  operands = tuple(re.findall(r'%([\w.-]+)', inside)) or tuple(filter(None, [inside.strip()]))
  return Instruction(match[2], line[at:end], line[end:opened].strip(), operands, line[closed + 1 :], bool(match[1]))


def _group(attributes: str) -> tuple[int, ...]:
  """The first replica group, as positions in the flattened mesh; a permutation's group is the ring it turns."""
  if match := re.search(r'source_target_pairs=\{\{(.*?)\}\}', attributes):
    pairs = dict(tuple(map(int, pair.split(','))) for pair in match[1].split('},{'))
    ring, at = [], next(iter(pairs))
    while at not in ring:
      ring.append(at)
      at = pairs.get(at, ring[0])
    return tuple(ring)
  if match := re.search(r'replica_groups=\{\{([\d,]*)\}', attributes):
    return tuple(int(n) for n in match[1].split(',') if n)
  iota = r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
  if match := re.search(rf'replica_groups={iota}', attributes):
    groups, dims, order = ([int(n) for n in part.split(',')] if part else None for part in match.groups())
    ids = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(groups)
    return tuple(int(n) for n in ids.reshape(groups[0], -1)[0])
  if match := re.search(r'replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}', attributes):
    dims = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    ids = np.arange(math.prod(dims.values()))
    if order := re.search(r'device_ids=\(?\[([\d,]+)\](?:T\(([\d,]+)\))?', match[2]):
      shape, turn = ([int(n) for n in part.split(',')] if part else None for part in order.groups())
      ids = ids.reshape(shape).transpose(turn)
    ids = ids.reshape(tuple(dims.values()))
    used = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[3])
    index: list[slice | int] = [0] * len(dims)
    for name, before, size in used:
      at = list(dims).index(name)
      if not size:
        index[at] = slice(None)
      else:  # a part of an axis: the members stand this far apart
        apart = dims[name] // (int(before) * int(size))
        index[at] = slice(0, apart * int(size), apart)
    return tuple(int(n) for n in ids[tuple(index)].reshape(-1))
  return ()
