"""Reading compiled programs, and the roofline of a step: known answers and invariances."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling import ledger
from scaling.config import Data, Execution, Model, Run
from scaling.parallel import hlo, roofline, topology
from scaling.parallel.hlo import Collective

MESH = {'data': 2, 'fsdp': 4, 'model': 2}


def run(**model):
  fields = {'layers': 4, 'width': 256, 'heads': 2, 'vocab': 512, **model}
  return Run(Model(**fields), Data(batch_size=64, sequence_length=128, tokens=64 * 128))


def program_of(function, *args):
  return hlo.Program(jax.jit(function).lower(*args).compile().as_text())


def test_collectives_in_a_scan_count_as_often_as_it_runs():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  w = jax.ShapeDtypeStruct((5, 32, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, 'data')))
  x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, P()))

  def f(w, x):
    def layer(x, w):
      whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
      return jnp.tanh(jnp.tanh(x @ whole) @ whole.T), None

    return jax.lax.scan(layer, x, w)[0]

  found = [c for c in program_of(f, w, x).collectives() if c.kind == 'all-gather']
  assert sum(c.times * c.bytes for c in found) == 5 * 32 * 64 * 4
  assert {c.group for c in found} == {tuple(range(8))}


def test_an_all_reduce_is_read_with_its_payload_and_group():
  mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(AxisType.Auto,) * 2)
  x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, 'model')))
  w = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P('model', None)))
  (found,) = program_of(lambda x, w: jnp.sin(x @ w), x, w).collectives()
  assert (found.kind, found.bytes, found.times) == ('all-reduce', 16 * 32 * 4, 1)
  assert roofline.axes_of(found.group, {'data': 4, 'model': 2}) == 'model'


@pytest.mark.parametrize(
  ('text', 'group'),
  [
    ('replica_groups={{0,2},{1,3}}, x', (0, 2)),
    ('replica_groups=[4,4]<=[16], x', (0, 1, 2, 3)),
    ('replica_groups=[4,4]<=[4,4]T(1,0), x', (0, 4, 8, 12)),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0'}, x", (0, 4, 8, 12)),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, x", (0, 1, 2, 3)),
    ("replica_groups=mesh['a'=8] {'a':(1)2}, x", (0, 4)),
    ("replica_groups=mesh['a'=8] {'a':(2)4}, x", (0, 1, 2, 3)),
    ('source_target_pairs={{0,4},{4,8},{8,0},{1,5},{5,9},{9,1}}, x', (0, 4, 8)),
    ('source_target_pairs={{0,1},{1,2}}, x', (0, 1, 2)),
    ('no groups', ()),
  ],
)
def test_replica_groups_in_every_notation(text, group):
  assert hlo._group(text) == group


TPU_TEXT = """HloModule m, is_scheduled=true

%start (p: bf16[8,64]) -> (bf16[8,64], bf16[32,64]) {
  %p = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[32,64]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %custom-call.1 = (bf16[8,64]{1,0}, bf16[32,64]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%go_on (p: bf16[8,64], q: f32[16]) -> f32[16] {
  %p = bf16[8,64]{1,0} parameter(0)
  %q = f32[16]{0} parameter(1)
  %all-gather.2 = bf16[32,64]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %sine.1 = f32[16]{0} sine(%q)
}

%take (p: f32[6,100], i: s32[]) -> f32[1,100] {
  %p = f32[6,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice.1 = f32[1,100]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,100}
}

%body (t: (s32[], bf16[8,64], f32[16], f32[6,100])) -> (s32[], bf16[8,64], f32[16], f32[6,100]) {
  %t = (s32[], bf16[8,64]{1,0}, f32[16]{0}, f32[6,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %a = bf16[8,64]{1,0} get-tuple-element(%t), index=1
  %b = f32[16]{0} get-tuple-element(%t), index=2
  %c = f32[6,100]{1,0} get-tuple-element(%t), index=3
  %f1 = (bf16[8,64]{1,0}, bf16[32,64]{1,0:T(8,128)S(1)}) fusion(%a), kind=kCustom, calls=%start
  %f2 = f32[16]{0:T(128)S(1)} fusion(%a, %b), kind=kCustom, calls=%go_on
  %f3 = f32[1,100]{1,0} fusion(%c, %i), kind=kLoop, calls=%take
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], bf16[8,64]{1,0}, f32[16]{0}, f32[6,100]{1,0}) tuple(%next, %a, %f2, %c)
}

%condition (t: (s32[], bf16[8,64], f32[16], f32[6,100])) -> pred[] {
  %t = (s32[], bf16[8,64]{1,0}, f32[16]{0}, f32[6,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: (s32[], bf16[8,64], f32[16], f32[6,100])) -> f32[16] {
  %x = (s32[], bf16[8,64]{1,0}, f32[16]{0}, /*index=3*/f32[6,100]{1,0}) parameter(0)
  %w = (s32[], bf16[8,64]{1,0}, f32[16]{0}, f32[6,100]{1,0}) while(%x), condition=%condition, body=%body
  ROOT %y = f32[16]{0} get-tuple-element(%w), index=2
}
"""


def test_an_asynchronous_collective_counts_once_in_each_trip():
  program = hlo.Program(TPU_TEXT)
  (found,) = program.collectives()
  assert found == Collective('all-gather', 32 * 64 * 2, (0, 1, 2, 3), 6, True)


def test_traffic_counts_slices_as_slices_and_leaves_out_on_chip_memory():
  gathered = 8 * 64 * 2 + 8 * 64 * 2  # read by the start, and its first result; the second lies on the chip
  going_on = 8 * 64 * 2 + 16 * 4  # the result lies on the chip
  slice_taken = 100 * 4 + 4 + 100 * 4  # the slice, its index, its copy
  counter = 3 * 4
  assert hlo.Program(TPU_TEXT).traffic() == 6 * (gathered + going_on + slice_taken + counter)


def test_a_loop_with_a_noted_trip_count_uses_it():
  noted = TPU_TEXT.replace('body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
  assert hlo.Program(noted).collectives()[0].times == 3


@given(st.lists(st.sampled_from(list(MESH)), unique=True, min_size=1))
def test_groups_along_axes_are_named_by_those_axes(names):
  group = roofline.axis_group(MESH, names)
  assert len(group) == math.prod(MESH[n] for n in names)
  assert roofline.axes_of(group, MESH) == '+'.join(n for n in MESH if n in names)


def line(*shape):
  return np.array([(0, *at) for at in np.ndindex(*shape)])


def test_seconds_of_collectives_by_hand():
  pod, part = topology.parse('v5e:16x16'), topology.parse('v5e:4x4')
  link = part.chip.interconnect / 4
  row = tuple(range(4))
  gather = Collective('all-gather', 4_000_000, row, 1, True)
  # An open line of four: three quarters of the array through one link.
  assert roofline.collective_seconds(gather, part, line(4, 4)) == pytest.approx(3e6 / link)
  # A closed ring of sixteen: both directions carry.
  ring = dataclasses.replace(gather, group=tuple(range(16)), bytes=16_000_000)
  assert roofline.collective_seconds(ring, pod, line(16, 16)) == pytest.approx(15e6 / (2 * link))
  # All sixteen chips of the open slice: two axes of links.
  whole = dataclasses.replace(ring, group=tuple(range(16)))
  assert roofline.collective_seconds(whole, part, line(4, 4)) == pytest.approx(15e6 / (2 * link))
  # Every other chip of a line shares the links with those between.
  apart = dataclasses.replace(gather, group=(0, 2), bytes=2_000_000)
  assert roofline.collective_seconds(apart, part, line(4, 4)) == pytest.approx(1e6 / (link * 2 / 3))


@given(st.integers(2, 16), st.integers(1, 10**9))
def test_reducing_to_all_is_scattering_and_gathering(n, size):
  where, places = topology.parse('v5e:16x16'), line(16, 16)
  group = tuple(range(n))
  seconds = {
    kind: roofline.collective_seconds(Collective(kind, size, group, 1, False), where, places)
    for kind in ('all-reduce', 'all-gather', 'reduce-scatter')
  }
  assert seconds['all-reduce'] == pytest.approx(seconds['all-gather'] + seconds['reduce-scatter'])


def test_between_slices_the_network_of_the_data_centre_bounds():
  two = topology.parse('2*v5e:2x2')
  places = np.array([(s, x, y) for s in range(2) for x in range(2) for y in range(2)])
  across = Collective('all-reduce', 10**6, (0, 4), 1, False)
  assert roofline.collective_seconds(across, two, places) == pytest.approx(1e6 / two.dcn)
  inside = dataclasses.replace(across, group=(0, 1))
  assert roofline.collective_seconds(inside, two, places) < 0.1 * 1e6 / two.dcn
  alone = dataclasses.replace(across, group=(0,))
  assert roofline.collective_seconds(alone, two, places) == 0


def test_full_remat_costs_the_blocks_forward_again():
  model = run(heads=2).model  # heads of 128: no padding
  flops = ledger.flops_per_token(model, 128).exact_causal
  extra = [roofline.extra_flops_per_token(model, 128, Execution(remat=name)) for name in ('none', 'full', 'dots')]
  head = 2 * model.width * model.vocab
  assert extra[1] - extra[0] == pytest.approx(flops / 3 - head)
  assert extra[0] < extra[2] < extra[1]


def test_small_heads_leave_the_matrix_unit_idle():
  wide, narrow = run(heads=2).model, run(heads=8).model
  assert ledger.flops_per_token(wide, 128).exact == ledger.flops_per_token(narrow, 128).exact
  extra = [roofline.extra_flops_per_token(m, 128, Execution()) for m in (wide, narrow)]
  assert extra[1] > extra[0]


def test_compute_bound_step_has_the_attainable_share_as_its_mfu():
  where = topology.parse('v5p:2x2x1')
  config = run(width=4096, heads=32, layers=8, vocab=32_000)
  bounds = roofline.estimate(config, Execution(), where, line(2, 2, 1), [], 0.0)
  useful = ledger.flops_per_token(config.model, 128).exact_causal
  extra = roofline.extra_flops_per_token(config.model, 128, Execution())
  assert bounds.bound == 'compute'
  assert bounds.mfu == pytest.approx(roofline.ATTAINABLE * useful / (useful + extra))


@given(st.floats(0, 1e13), st.floats(0, 1e13), st.integers(0, 10**10))
def test_more_traffic_or_network_is_never_faster(traffic, more, size):
  where, places = topology.parse('v5e:4x4'), line(4, 4)
  gather = Collective('all-gather', size, (0, 1, 2, 3), 1, True)
  base = roofline.estimate(run(), Execution(), where, places, [], traffic)
  slower = roofline.estimate(run(), Execution(), where, places, [gather], traffic + more)
  exposed = roofline.estimate(
    run(), Execution(), where, places, [dataclasses.replace(gather, overlapped=False)], traffic + more
  )
  assert base.step_seconds <= slower.step_seconds <= exposed.step_seconds
  assert base.mfu <= 1


def test_expected_collectives_of_each_axis():
  config = run()
  weights = 2 * ledger.parameters(config.model).total

  def expected(**mesh):
    shape = {'data': 1, 'fsdp': 1, 'context': 1, 'sequence': 1, 'model': 1, **mesh}
    return {c.kind: c for c in roofline.expected_collectives(config, Execution(), shape)}

  assert expected() == {}
  assert expected(data=4)['all-reduce'].bytes == weights
  sharded = expected(fsdp=4)
  assert sharded['all-gather'].bytes * sharded['all-gather'].times == 2 * weights
  assert sharded['reduce-scatter'].bytes == weights
  tensor = expected(model=2)['all-reduce']
  assert (tensor.bytes, tensor.times) == (64 * 128 * 256 * 2, 4 * 4)


def test_expected_traffic_falls_with_sharding_and_rises_with_remat():
  config = run()
  one = roofline.expected_traffic(config, Execution(), {'data': 1})
  assert roofline.expected_traffic(config, Execution(), {'fsdp': 8}) < one
  assert roofline.expected_traffic(config, Execution(remat='full'), {'data': 1}) > one
