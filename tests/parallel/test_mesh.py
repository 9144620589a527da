"""The mesh: sizes and their mistakes, the one table of axes, state laid out as its parameters, logits never whole."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from scaling import config
from scaling.errors import UserError
from scaling.models import decoder, presets
from scaling.parallel import mesh as meshes
from scaling.parallel.mesh import MeshSpec
from scaling.train import step as steps

# Each size is another number, so that shapes in a program's text say what they are.
RUN = config.Run(
  model=config.Model(layers=2, width=48, heads=8, kv_heads=4, head_dim=6, mlp_width=56, vocab=404, tied=False),
  data=config.Data(tokens=4096, batch_size=8, sequence_length=32),
)


def program(mesh: str, run=RUN, **execution):
  spec = MeshSpec.parse(mesh)
  return steps.make_program(
    run, config.Execution(**execution), meshes.make(spec, jax.devices()[: spec.size]), capacity=1
  )


def compiled_text(made, run=RUN) -> str:
  shape = lambda dtype, *dims: jax.ShapeDtypeStruct(dims, dtype)  # noqa: E731
  batch = steps.batch_shapes(run.data, 1, made.batch_sharding)
  signals = jax.ShapeDtypeStruct((made.mesh.size,), jnp.int32, sharding=made.signal_sharding)
  arguments = (shape(jnp.float32, 1), shape(jnp.int32), shape(jnp.bool_), signals)
  return made.train.lower(made.shapes, batch, *arguments).compile().as_text()


def refusal(function, *args) -> str:
  with pytest.raises(UserError) as caught:
    function(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


# Sizes


def test_sizes_are_read_and_written():
  spec = MeshSpec.parse(' fsdp=4, model=2')
  assert (spec.fsdp, spec.model, spec.data, spec.size, str(spec)) == (4, 2, 1, 8, 'fsdp=4,model=2')
  assert MeshSpec.parse('') == MeshSpec() and str(MeshSpec()) == 'data=1'


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('fdsp=8', r"unknown mesh axis 'fdsp'.*fsdp"),
    ('fsdp=0', r"'fsdp=0': its size must be a whole number from 1"),
    ('fsdp', r"'fsdp': its size must be a whole number"),
    ('data=2,data=4', 'axis data twice'),
    ('expert=2', 'reserved'),
  ],
)
def test_a_mesh_that_cannot_be_read(text, said):
  assert re.search(said, refusal(MeshSpec.parse, text))


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('data=3', 'mesh data=3 has 3 devices, and there are 8: take data=8'),
    ('data=4,model=4', 'mesh data=4,model=4 has 16 devices, and there are 8: take data=2,model=4'),
    ('model=3', 'mesh model=3 has 3 devices, and there are 8: take sizes whose product is 8, for instance data=8'),
  ],
)
def test_a_mesh_of_another_number_of_devices(text, said):
  assert refusal(meshes.resolve, text, 8) == said
  assert refusal(meshes.make, MeshSpec.parse(text)) == said


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
@pytest.mark.parametrize('name', ['gpt2', 'llama3-8b', 'gpt3-2.7b'])
def test_the_automatic_mesh_is_one_that_divides(platform, name):
  model = presets.get(name)
  for devices in (1, 6, 8, 64, 256):
    spec = MeshSpec.auto(devices, model, platform)
    assert spec.size == devices and model.width % spec.fsdp == 0
    assert spec.fsdp == 1 or platform != 'cpu'


# What does not divide


def changed(**overrides):
  return config.replace(RUN, {k.replace('__', '.'): v for k, v in overrides.items()})


@pytest.mark.parametrize(
  ('mesh', 'changes', 'said'),
  [
    ('data=2,model=4', {'model__heads': 6, 'model__kv_heads': 6},
     'model.heads=6 does not divide over model=4: take model=2, as in data=4,model=2'),
    ('model=8', {'model__mlp_width': 12}, 'model.mlp_width=12 does not divide over model=8: take model=4, as in data=2,model=4'),
    ('fsdp=2,model=4', {'model__vocab': 401},
     'model.vocab=401 does not divide over model=4: take model=1, as in data=4,fsdp=2, or model.vocab=404'),
    ('sequence=2,model=4', {'model__heads': 4},
     'model.heads=4 does not divide over sequencexmodel=8: take model=2, as in data=2,sequence=2,model=2'),
    ('fsdp=8', {'model__width': 36}, 'model.width=36 does not divide over fsdp=8: take fsdp=4, as in data=2,fsdp=4'),
    ('data=4,fsdp=2', {'data__batch_size': 6}, 'data.batch_size=6 does not divide over data x fsdp = 8 devices'),
    ('context=8', {'data__sequence_length': 36},
     'data.sequence_length=36 does not divide over context=8 x sequence=1: take a multiple of 8, for instance 40'),
    ('sequence=8', {'data__sequence_length': 36, 'model__vocab': 808},
     'data.sequence_length=36 does not divide over context=1 x sequence=8: take a multiple of 8, for instance 40'),
  ],
)  # fmt: skip
def test_what_does_not_divide_is_told_before_anything_compiles(mesh, changes, said):
  assert said in refusal(program, mesh, changed(**changes))


@settings(deadline=None, max_examples=60)
@given(
  st.integers(1, 40), st.sampled_from(['data=2,model=4', 'fsdp=4,model=2', 'sequence=2,model=4', 'context=2,model=4'])
)
def test_the_mesh_that_a_refusal_names_works(heads, mesh):
  spec = MeshSpec.parse(mesh)
  tensor = spec.sequence * spec.model
  run = changed(model__heads=heads, model__kv_heads=heads, model__mlp_width=840, model__vocab=840)
  if heads % tensor == 0:
    meshes.check_divides(run, config.Execution(), spec.shape)
    return
  named = re.search(r'as in (\S+)$', refusal(meshes.check_divides, run, config.Execution(), spec.shape))[1]
  other = MeshSpec.parse(named)
  assert other.size == 8 and heads % (other.sequence * other.model) == 0
  assert other.context == spec.context and other.fsdp == spec.fsdp


def test_layers_are_split_over_nothing():
  assert meshes.RULES['layers'] == ()
  program('fsdp=2,model=4', changed(model__layers=3))


def test_a_parameter_that_does_not_divide_is_named():
  mesh = meshes.make(MeshSpec(model=8))
  axes = {'up': ('embed', 'mlp')}
  said = refusal(meshes.shardings, axes, {'up': jax.ShapeDtypeStruct((16, 12), jnp.float32)}, mesh)
  assert said.startswith(
    'parameter up: mlp has size 12, which mesh model=8 does not divide: the nearest that works is model=4'
  )
  assert said.endswith('or mlp of 16')


def test_a_parameter_without_axes_or_with_unknown_ones_is_refused():
  mesh = meshes.make(MeshSpec(data=8))
  shapes = {'up': jax.ShapeDtypeStruct((16, 16), jnp.float32)}
  assert 'parameter up has no logical axes' in refusal(meshes.shardings, {'up': None}, shapes, mesh)
  assert 'parameters have 0 entries' in refusal(meshes.shardings, {}, shapes, mesh)
  assert "unknown logical axis 'mpl'" in refusal(meshes.shardings, {'up': ('embed', 'mpl')}, shapes, mesh)
  assert 'name 1 dimensions' in refusal(meshes.shardings, {'up': ('embed',)}, shapes, mesh)


# The table


def test_the_table_names_every_axis_of_every_parameter():
  used = set()
  for name in ('gpt2', 'llama3-8b', 'gpt3-2.7b'):
    model = config.replace(presets.get(name), {'qk_norm': True, 'vocab': 50_304})
    used |= {
      axis for axes in jax.tree.leaves(decoder.axes(model), is_leaf=lambda x: isinstance(x, tuple)) for axis in axes
    }
  assert used <= set(meshes.RULES)
  assert {'vocab', 'embed', 'heads', 'kv_heads', 'head_dim', 'mlp', 'layers', 'positions', 'norm'} <= used
  assert {axis for axes in meshes.RULES.values() for axis in axes} <= set(meshes.AXES)


@pytest.mark.parametrize(
  ('axes', 'shape', 'wanted'),
  [
    (('embed', 'mlp'), (48, 56), ('fsdp', 'model')),
    (('embed', 'kv_heads', 'head_dim'), (48, 1, 6), ('fsdp', None, None)),  # fewer than the tensor axes: whole
    (('batch', 'sequence', 'embed'), (8, 32, 48), (('data', 'fsdp'), None, None)),  # the batch has taken fsdp
    (('batch', 'sequence', 'vocab'), (8, 32, 404), (('data', 'fsdp'), None, 'model')),
    (('layers', 'norm'), (2, 48), (None, None)),
  ],
)
def test_where_arrays_lie(axes, shape, wanted):
  mesh = meshes.make(MeshSpec(data=2, fsdp=2, model=2))
  assert meshes.partition_spec(axes, shape, mesh) == PartitionSpec(*wanted)


def test_between_blocks_the_sequence_lies_over_context_and_sequence():
  mesh = meshes.make(MeshSpec(context=2, sequence=2, model=2))
  spec = meshes.partition_spec(('batch', 'sequence', 'embed'), (8, 32, 48), mesh)
  assert spec == PartitionSpec(None, ('context', 'sequence'), None)
  # Inside a block heads come first: the sequence keeps only the ring's axis.
  spec = meshes.partition_spec(('batch', 'sequence', 'heads', 'head_dim'), (8, 32, 8, 6), mesh)
  assert spec == PartitionSpec(None, 'context', ('sequence', 'model'), None)


# The compiled step


def test_optimiser_state_lies_as_its_parameters():
  made = program('data=2,fsdp=2,model=2')
  shardings = jax.tree.map(lambda x: x.sharding.spec, made.shapes.params)
  moments = made.shapes.opt_state[1]
  for tree in (moments.mu, moments.nu):
    assert jax.tree.map(lambda x: x.sharding.spec, tree) == shardings
  assert moments.count.sharding.spec == PartitionSpec()
  state = made.init(jax.random.key(0))
  whole = parted = 0
  for x in jax.tree.leaves((state.params, state.opt_state[1].mu, state.opt_state[1].nu)):
    whole, parted = whole + x.nbytes, parted + x.addressable_shards[0].data.nbytes
  assert parted == pytest.approx(whole / 4, rel=0.02)  # but for the norms


def dimensions(text: str) -> list[list[int]]:
  """The dimensions of each array that a program's text names."""
  return [[int(n) for n in m[1].split(',')] for m in re.finditer(r'\b(?:f32|bf16|f16|s32|pred)\[([\d,]+)\]', text)]


@pytest.mark.parametrize('chunk', [pytest.param(None, marks=pytest.mark.slow), 8])
def test_logits_of_a_sharded_vocabulary_are_never_gathered(chunk):
  """No array of the compiled step has the whole vocabulary in it: not the logits, nor their gradient, nor the head."""
  text = compiled_text(program('data=2,model=4', loss_chunk=chunk))
  assert 'all-reduce' in text
  shapes = dimensions(text)
  local = [shape for shape in shapes if 101 in shape and np.prod(shape) >= 4 * (chunk or 32) * 101]
  assert local  # the logits of one device: half of the batch, a quarter of the vocabulary
  assert not [shape for shape in shapes if 404 in shape]


@pytest.mark.slow
def test_the_whole_vocabulary_is_seen_where_it_is_whole():
  """So that the test above cannot pass by blindness."""
  assert [shape for shape in dimensions(compiled_text(program('data=8'))) if 404 in shape]


def test_constrain_does_nothing_without_a_mesh():
  x = jnp.ones((3, 5))
  assert meshes.constrain(x, ('batch', 'embed')) is x
  with meshes.use(meshes.make(MeshSpec(), jax.devices()[:1])):
    assert meshes.constrain(x, ('batch', 'embed')) is x
  assert meshes.active() is None
