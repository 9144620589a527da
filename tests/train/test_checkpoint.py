"""Checkpoints hold what was saved, whatever training does next, and restore onto any mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from scaling import config
from scaling.parallel import mesh as meshes
from scaling.train import step as steps
from scaling.train.checkpoint import Checkpoints

RUN = config.Run(
  model=config.Model(layers=1, width=16, heads=4, vocab=32), data=config.Data(batch_size=8, sequence_length=16)
)


def program(mesh):
  spec = meshes.MeshSpec.parse(mesh)
  return steps.make_program(RUN, config.Execution(), meshes.make(spec, jax.devices()[: spec.size]), 1)


def equal(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope='module')
def state():
  return program('fsdp=8').init(jax.random.key(0))


def test_restores_onto_other_meshes(tmp_path, state):
  checkpoints = Checkpoints(tmp_path, keep=2)
  assert checkpoints.restore(program('data=1').shapes) is None
  checkpoints.save(7, dataclasses.replace(state, step=state.step + 7), 1.5)
  checkpoints.wait()
  for mesh in ('fsdp=8', 'data=2,model=4', 'data=1'):
    shapes = program(mesh).shapes
    restored, seconds = checkpoints.restore(shapes)
    assert int(restored.step) == 7 and seconds == 1.5
    equal(restored.params, state.params)
    equal(restored.opt_state, state.opt_state)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s.sharding, restored, shapes))
  checkpoints.close()


def test_later_steps_do_not_reach_into_a_save_under_way(tmp_path, state):
  before = jax.tree.map(lambda x: np.array(x, copy=True), state)
  moving = jax.tree.map(lambda x: x + 0, state)
  advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  checkpoints = Checkpoints(tmp_path, keep=2)
  checkpoints.save(0, moving, 0.0)
  for _ in range(20):
    moving = advance(moving)
  checkpoints.wait()
  restored, _ = checkpoints.restore(program('fsdp=8').shapes)
  equal(restored, before)
  checkpoints.close()


def test_keeps_the_last_and_passes_over_a_damaged_one(tmp_path, state):
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 3):
    checkpoints.save(step, dataclasses.replace(state, step=state.step + step), float(step))
  checkpoints.wait()
  checkpoints.close()
  assert checkpoints.steps() == [2, 3]
  for path in (tmp_path / '3').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  restored, seconds = Checkpoints(tmp_path, keep=2).restore(program('data=1').shapes)
  assert int(restored.step) == 2 and seconds == 2.0
