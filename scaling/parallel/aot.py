"""Compiles the real training step for TPUs that are not here: memory per chip, FLOPs, collectives, a time estimate.

`compile_run` does it for one run, `check_study` for each shape of a study, `compile_verb` for the command line.
The step is that of scaling.train.step, lowered on shapes alone, so nothing is allocated. Needs libtpu, and no TPU.
"""

import contextlib
import dataclasses
import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from scaling import config, ledger
from scaling.config import Execution, Run
from scaling.errors import UserError, unknown
from scaling.parallel import topology as topologies
from scaling.parallel.topology import Topology

SEQUENCE_LENGTH = 2048  # of a preset compiled by name, where its own context is not shorter
SEQUENCES_PER_CHIP = 8  # likewise

# Bytes of main memory that a program may use, as libtpu 0.0.51 states them when a program asks for more.
AVAILABLE = {'v4': 30.75 * 2**30, 'v5e': 15.75 * 2**30, 'v5p': 95.73 * 2**30, 'v6e': 31.24 * 2**30}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What compiling gave: memory by kind in bytes per chip, and the program's text, where it can be had."""

  arguments: int
  temporaries: int
  total: int
  seconds: float
  refused: bool  # the compiler stopped, as the program asks for more memory than there is
  text: str | None


def compile_run(run: Run, execution: Execution | None = None, topology: str = 'v5e:4x4', mesh: str = 'auto') -> dict:
  """Compiles one training step of a resolved run and reports on it.

  Returns:
    topology, chips, mesh; bytes_per_chip {arguments, temporaries, total, available}; fits; flops (of one step on all
    chips: exact, causal), flops_by_convention; collectives (kind, axes, overlapped, count, bytes per chip, seconds);
    roofline (seconds by resource), roofline_from (the compiled program, or shapes alone where it cannot be read); step_seconds, mfu, tokens_per_second; advice (what to change where it does not
    fit); compile_seconds, libtpu. Of a program that does not fit, what comes from its text is None.

  Raises:
    UserError: unknown topology, a mesh that does not match it, axes that do not divide, no libtpu.
  """
  from scaling.parallel.mesh import check_divides

  execution = execution or Execution()
  where = topologies.parse(topology)
  spec = mesh_spec(mesh, where, run)
  check_divides(run, execution, spec.shape)
  device_mesh = make_mesh(spec, where)
  compiled = _compile(run, execution, device_mesh)
  flops = ledger.flops_per_token(run.model, run.data.sequence_length)
  tokens = run.data.batch_tokens
  result = {
    'name': run.name,
    'topology': str(where),
    'chips': where.chips,
    'mesh': str(spec),
    'execution': {k: getattr(execution, k) for k in ('attention', 'remat', 'microbatches', 'loss_chunk')},
    'params_total': ledger.parameters(run.model).total,
    'batch_size': run.data.batch_size,
    'sequence_length': run.data.sequence_length,
    'bytes_per_chip': {
      'arguments': compiled.arguments,
      'temporaries': compiled.temporaries,
      'total': compiled.total,
      'available': int(AVAILABLE[where.family]),
    },
    'fits': not compiled.refused and compiled.total <= AVAILABLE[where.family],
    'flops': flops.exact_causal * tokens,
    'flops_by_convention': {k: v * tokens for k, v in flops.to_dict().items()},
    'compile_seconds': compiled.seconds,
    'libtpu': topologies.version(),
    'advice': [],
    **_speed(run, execution, where, device_mesh, compiled),
  }
  if not result['fits']:
    from scaling.parallel import search

    result['advice'] = search.advice(run, execution, where, spec, compiled.total)
  return result


def mesh_spec(text: str, where: Topology, run: Run) -> Any:
  """The mesh asked for, or one chosen for the model. Raises UserError where it does not match the chips."""
  from scaling.parallel import mesh

  if text in ('', 'auto'):
    # More shards than sequences cannot be fed: what is left over goes to copies only if the batch divides.
    return mesh.MeshSpec.auto(where.chips, run.model, platform='tpu')
  spec = mesh.MeshSpec.parse(text)
  if spec.size != where.chips:
    others = spec.size // spec.data
    if where.chips % others == 0:
      hint = f'take {dataclasses.replace(spec, data=where.chips // others)}'
    else:
      hint = f'take sizes whose product is {where.chips}, for instance fsdp={where.chips}'
    raise UserError(f'mesh {spec} has {spec.size} devices, and {where} has {where.chips} chips: {hint}')
  return spec


def make_mesh(spec: Any, where: Topology) -> Any:
  """The mesh on the topology's compile-only devices; of several slices the outer axis lies across them."""
  from scaling.parallel import mesh

  devices = topologies.devices(where)
  if where.slices == 1:
    return mesh.make(spec, devices)
  import numpy as np
  from jax.sharding import AxisType, Mesh

  across = next((a for a in ('data', 'fsdp') if getattr(spec, a) % where.slices == 0), None)
  if across is None:
    raise UserError(
      f'mesh {spec} does not lie across the {where.slices} slices of {where}: take data a multiple of {where.slices}'
    )
  inner = dataclasses.replace(spec, **{across: getattr(spec, across) // where.slices})
  by_slice = [[d for d in devices if d.slice_index == i] for i in range(where.slices)]
  grids = [mesh.make(inner, members).devices for members in by_slice]
  at = mesh.AXES.index(across)
  return Mesh(np.concatenate(grids, axis=at), mesh.AXES, axis_types=(AxisType.Auto,) * len(mesh.AXES))


def lower(run: Run, execution: Execution, mesh: Any) -> Any:
  """The training step of `run` lowered for `mesh`, on shapes alone."""
  import jax
  import jax.numpy as jnp

  from scaling.parallel.mesh import replicated
  from scaling.train import step

  program = step.make_program(run, execution, mesh, capacity=1)
  everywhere = replicated(mesh)

  def shape(dims: tuple[int, ...], dtype: Any, sharding: Any = everywhere) -> Any:
    return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

  return program.train.lower(
    program.shapes,
    step.batch_shapes(run.data, 1, program.batch_sharding),
    shape((1,), jnp.float32),
    shape((), jnp.int32),
    shape((), jnp.bool_),
    shape((mesh.size,), jnp.int32, program.signal_sharding),
  )


def _compile(run: Run, execution: Execution, mesh: Any) -> Compiled:
  import jax

  started = time.perf_counter()
  lowered = lower(run, execution, mesh)
  arguments = sum(
    _local_bytes(x) for x in jax.tree.leaves(lowered.in_avals) if hasattr(x, 'shape')
  )  # fmt: skip
  try:
    with _no_compile_cache():
      compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    total = out_of_memory(str(error))
    if total is None:
      raise
    return Compiled(arguments, max(total - arguments, 0), total, time.perf_counter() - started, True, None)
  stats = compiled.memory_analysis()
  arguments = stats.argument_size_in_bytes
  temporaries = stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
  total = arguments + temporaries + stats.output_size_in_bytes - stats.alias_size_in_bytes
  seconds = time.perf_counter() - started
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError:  # libtpu 0.0.51 does not give the text of some programs for 1,024 chips
    text = None
  return Compiled(arguments, temporaries, total, seconds, False, text)


@contextlib.contextmanager
def _no_compile_cache() -> Iterator[None]:
  """Leaves the persistent cache of programs alone: without a TPU its entries for one cannot be read back."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # whether to use it was settled at the first compile
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def _local_bytes(x: Any) -> int:
  sharding = getattr(x, 'sharding', None)
  shape = sharding.shard_shape(x.shape) if sharding is not None and hasattr(sharding, 'shard_shape') else x.shape
  size = x.dtype.itemsize
  for n in shape:
    size *= n
  return size


def out_of_memory(message: str) -> int | None:
  """The bytes per chip that a program asks for, from the compiler's refusal; None for any other error."""
  if 'RESOURCE_EXHAUSTED' not in message or 'hbm' not in message.lower():
    return None
  found = re.search(r'Used ([\d.]+)([KMGT]?) of', message) or re.search(r'\(([\d.]+)([KMGT]?)\) exceeds', message)
  if not found:
    return None
  return int(float(found[1]) * 2 ** {'': 0, 'K': 10, 'M': 20, 'G': 30, 'T': 40}[found[2]])


def _speed(run: Run, execution: Execution, where: Topology, mesh: Any, compiled: Compiled) -> dict[str, Any]:
  if compiled.refused:
    none = ('roofline', 'roofline_from', 'step_seconds', 'mfu', 'tokens_per_second')
    return {'collectives': [], **dict.fromkeys(none)}
  from scaling.parallel import hlo, roofline

  places, shape = roofline.places(mesh), dict(mesh.shape)
  if compiled.text is None:
    collectives = roofline.expected_collectives(run, execution, shape)
    traffic = roofline.expected_traffic(run, execution, shape)
  else:
    program = hlo.Program(compiled.text)
    collectives, traffic = program.collectives(), program.traffic()
  bounds = roofline.estimate(run, execution, where, places, collectives, traffic)
  return {
    'collectives': roofline.summary(collectives, where, places, shape),
    'roofline': bounds.to_dict(),
    'roofline_from': 'shapes' if compiled.text is None else 'program',
    'step_seconds': bounds.step_seconds,
    'mfu': bounds.mfu,
    'tokens_per_second': run.data.batch_tokens / bounds.step_seconds,
  }


def shape_key(run: Run) -> tuple:
  """What of a run decides its compiled step: runs that agree in it compile to the same program."""
  data = run.data
  return run.model, data.batch_size, data.sequence_length, data.document_mask, bool(run.optim.weight_decay)


def check_study(
  runs: Sequence[Run], topology: str, mesh: str = 'auto', execution: Execution | None = None, progress: Any = None
) -> list[dict]:
  """Compiles each distinct shape among resolved runs. One result a shape, as `compile_run` gives it, with `runs`, the
  names of those that have it. A shape that cannot lie on the mesh has fits False and says why in `error`.

  progress: called with one line before each compile.
  """
  where = topologies.parse(topology)
  topologies.prepare()
  mesh_spec(mesh, where, runs[0])  # a mesh that does not match the chips is no fault of a shape's
  shapes: dict[tuple, list[Run]] = {}
  for run in runs:
    shapes.setdefault(shape_key(run), []).append(run)
  results = []
  for index, members in enumerate(shapes.values()):
    first = members[0]
    if progress:
      progress(f'compiling shape {index + 1} of {len(shapes)}: {first.name or first.run_id}')
    try:
      result = compile_run(first, execution, topology, mesh)
    except UserError as error:
      result = {'name': first.name, 'topology': topology, 'mesh': mesh, 'fits': False, 'error': str(error)}
    results.append({**result, 'runs': [r.name or r.run_id for r in members]})
  return results


def refusal(results: Sequence[dict]) -> str | None:
  """One line that names the cells which do not fit, or None where all do."""
  bad = [r for r in results if not r['fits']]
  if not bad:
    return None
  first = bad[0]
  if 'error' in first:
    why = first['error']
  else:
    size = first['bytes_per_chip']
    why = f'{size["total"] / 2**30:.1f} GiB a chip, and {first["topology"]} has {size["available"] / 2**30:.1f}'
    if first['advice']:
      why += f'; try {first["advice"][0]}'
  names = [name for r in bad for name in r['runs']]
  shown = ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
  return f'{len(names)} of {sum(len(r["runs"]) for r in results)} runs do not fit ({shown}): {why}'


def preset_run(name: str, chips: int, overrides: dict[str, Any] | None = None) -> Run:
  """A run of a preset for compiling: SEQUENCES_PER_CHIP sequences a chip of SEQUENCE_LENGTH tokens, or the preset's own
  context where that is shorter; `overrides` as `--set` gives them. The text is not read.
  """
  from scaling.models import presets

  overrides = dict(overrides or {})
  model = presets.get(name)
  if model.vocab is None and 'model.vocab' not in overrides:
    overrides['model.vocab'] = 256
  length = min(SEQUENCE_LENGTH, model.context or SEQUENCE_LENGTH)
  length = int(float(overrides.get('data.sequence_length', length)))
  batch = int(float(overrides.get('data.batch_size', SEQUENCES_PER_CHIP * chips)))
  data = {'data.sequence_length': length, 'data.batch_size': batch, 'data.tokens': batch * length}
  return config.replace(Run(name=name), {'model': model, **data, **overrides})


def targets(target: str, chips: int, overrides: dict[str, Any]) -> list[Run]:
  """The runs behind a preset's or a study's name. Raises UserError for a name that is neither."""
  from scaling.models import presets

  if target in presets.names() or target.startswith('ladder-'):
    return [preset_run(target, chips, overrides)]
  from scaling import data
  from scaling.sweep import study

  try:
    runs = study.load(target).runs
  except UserError as error:
    if target.endswith('.py') or '/' in target:
      raise
    known = [*presets.names(), *getattr(study, 'names', list)()]
    raise (unknown('preset or study', target, known) if 'unknown' in str(error) else error) from None
  return [data.resolve(config.replace(run, overrides) if overrides else run) for run in runs]


def compile_verb(
  target: str,
  topology: str,
  mesh: str = 'auto',
  overrides: Sequence[str] = (),
  *,
  search: bool = False,
  progress: Any = None,
) -> list[dict]:
  """`scaling compile STUDY_OR_PRESET`: one result for each distinct shape, as `compile_run` gives it.

  overrides: `path=value` of the run, or of the execution as `execution.remat=full`.
  search: tries meshes, batch splits and remat instead of `mesh`, and returns the ranked best of the first shape.
  """
  where = topologies.parse(topology)
  settings = dict(config.parse_override(text) for text in overrides)
  how = {k.removeprefix('execution.'): settings.pop(k) for k in list(settings) if k.startswith('execution.')}
  execution = config.replace(Execution(), how)
  runs = targets(target, where.chips, settings)
  topologies.prepare()
  logging.getLogger('jax._src.mesh_utils').setLevel(logging.ERROR)
  if search:
    from scaling.parallel import search as searching

    return searching.search(runs[0], where, execution, progress=progress)
  if len({shape_key(run) for run in runs}) == 1:
    return [{**compile_run(runs[0], execution, topology, mesh), 'runs': [r.name or r.run_id for r in runs]}]
  return check_study(runs, topology, mesh, execution, progress)
