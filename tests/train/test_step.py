"""The compiled step: the same numbers on any mesh, in any dispatch and in any microbatches; it can learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import config
from scaling.data.stream import Batch
from scaling.errors import UserError
from scaling.models import decoder
from scaling.parallel import mesh as meshes
from scaling.train import step as steps

# float32, six updates: rounding differs with the order of sums over devices and microbatches, and Adam's division by
# sqrt(v) passes it on. The relative difference of losses was below 1e-5 wherever it was looked at.
TOLERANCE = 1e-5


def make_run(**overrides):
  base = config.Run(
    model=config.Model(layers=1, width=16, heads=4, vocab=32),
    data=config.Data(tokens=8 * 16 * 50, batch_size=8, sequence_length=16),
    optim=config.Optim(learning_rate=1e-2),
  )
  return config.replace(base, overrides)


@functools.cache
def batches(count, vocab=32, batch=8, time=16, segments=False):
  generator = np.random.default_rng(0)
  # Words of a small random language, so that there is something to learn.
  tokens = generator.integers(0, 4, (count, batch, time + 1)).cumsum(-1) % vocab
  parts = generator.integers(0, 2, (count, batch, time + 1)).cumsum(-1) if segments else None
  return Batch(tokens.astype(np.int32), None if parts is None else parts.astype(np.int32))


def train(run, execution=None, mesh='data=1', dispatches=(1,) * 6, capacity=None, data=None):
  """Final state and the last training loss of each dispatch."""
  spec = meshes.MeshSpec.parse(mesh)
  made = meshes.make(spec, jax.devices()[: spec.size])
  program = steps.make_program(run, execution or config.Execution(), made, capacity or max(dispatches))
  data = data or batches(sum(dispatches), segments=run.data.document_mask)
  state = program.init(jax.random.key(run.seed))
  signals = jax.device_put(np.zeros(made.size, np.int32), program.signal_sharding)
  losses, done = [], 0
  for count in dispatches:
    chosen = (np.arange(program.capacity) % count) + done
    chunk = jax.tree.map(lambda x, chosen=chosen: jax.device_put(x[chosen], program.batch_sharding), data)
    rates = np.full(program.capacity, run.optim.learning_rate, np.float32)
    state, metrics = program.train(state, chunk, rates, np.int32(count), np.bool_(done == 0), signals)
    losses.append(float(metrics.last_loss))
    done += count
  return state, np.array(losses), program


@functools.cache
def reference():
  return train(make_run())


def test_overfits_one_batch():
  data = jax.tree.map(lambda x: np.repeat(x[:1], 150, 0), batches(1))
  state, losses, _ = train(make_run(), dispatches=(50, 50, 50), data=data)
  assert losses[-1] < 0.1 < losses[0]
  assert int(state.step) == 150 and int(state.diverged_step) == -1


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize('mesh', [slow('data=8'), 'fsdp=8', slow('data=2,model=4'), 'data=2,fsdp=2,model=2'])
def test_steps_on_eight_devices_equal_steps_on_one(mesh):
  _, expected, _ = reference()
  state, losses, program = train(make_run(), mesh=mesh)
  np.testing.assert_allclose(losses, expected, rtol=TOLERANCE)
  assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s.sharding, state, program.shapes))
  if 'fsdp' in mesh:  # weights and both moments are really split
    for tree in (state.params, state.opt_state[1].mu, state.opt_state[1].nu):
      assert tree['blocks']['mlp']['up'].addressable_shards[0].data.size < tree['blocks']['mlp']['up'].size


def test_dispatches_do_not_change_a_bit():
  """Six steps as 6, 1+5, 2+3+1: the same program, so equal to the last bit."""
  whole, _, _ = train(make_run(), dispatches=(6,))
  for dispatches in ((1, 5), (2, 3, 1)):
    parts, _, _ = train(make_run(), dispatches=dispatches, capacity=6)
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
    assert float(parts.loss_sum) == float(whole.loss_sum) and int(parts.loss_count) == 6


@pytest.mark.parametrize('mesh,microbatches', [slow('data=1', 2), slow('data=1', 8), ('data=2,model=2', 4)])
def test_microbatches_equal_the_large_batch(mesh, microbatches):
  _, expected, _ = reference()
  _, losses, _ = train(make_run(), config.Execution(microbatches=microbatches), mesh)
  np.testing.assert_allclose(losses, expected, rtol=TOLERANCE)


def test_microbatches_weigh_by_token():
  """Rows with very different counts of targets: a mean of means would be another number."""
  run = make_run()
  data = batches(1)
  mask = np.ones((1, 8, 16), bool)
  mask[:, 1::2, 2:] = False
  data = data._replace(mask_bt=mask)
  losses = [train(run, config.Execution(microbatches=m), dispatches=(1,), data=data)[1][0] for m in (1, 4)]
  np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def test_loss_chunks_and_document_masks_change_nothing_but_memory():
  run = make_run(**{'data.document_mask': True})
  _, whole, _ = train(run)
  _, chunked, _ = train(run, config.Execution(loss_chunk=4))
  np.testing.assert_allclose(chunked, whole, rtol=TOLERANCE)
  assert abs(whole[-1] - reference()[1][-1]) > 1e-4  # the mask does something


def test_evaluation_weighs_by_token():
  run = make_run()
  _, _, program = reference()
  state = program.init(jax.random.key(3))  # the state of train() is its own
  data = batches(3)
  mask = np.ones((3, 8, 16), bool)
  mask[2, 3:] = False
  got = program.evaluate(state.params, jax.device_put(data._replace(mask_bt=mask), program.batch_sharding))
  logits = jax.jit(decoder.apply, static_argnums=0)(run.model, state.params, data.tokens_bt.reshape(24, 17)[:, :-1])
  log_probability = jax.nn.log_softmax(logits)
  targets = data.tokens_bt.reshape(24, 17)[:, 1:]
  nats = -jnp.take_along_axis(log_probability, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(got, nats[mask.reshape(24, 16)].mean(), rtol=1e-6)


def test_divergence_is_found_on_the_device_with_its_step():
  run = make_run(**{'optim.learning_rate': 1e6})
  state, losses, _ = train(run, dispatches=(8, 8, 8))
  assert 1 < int(state.diverged_step) <= 24
  assert np.isfinite(losses[-1])


def test_runs_of_one_shape_share_their_programs():
  first, second = make_run(), make_run(**{'optim.learning_rate': 1e-4, 'data.tokens': 9000, 'seed': 4, 'name': 'x'})
  mesh = meshes.make(meshes.MeshSpec(), jax.devices()[:1])
  assert steps.make_program(first, config.Execution(), mesh, 4) is steps.make_program(
    second, config.Execution(), mesh, 4
  )
  other = make_run(**{'optim.weight_decay': 0.0})
  assert steps.make_program(other, config.Execution(), mesh, 4) is not steps.make_program(
    first, config.Execution(), mesh, 4
  )


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers():
  mesh = meshes.make(meshes.MeshSpec(data=8))
  with pytest.raises(UserError, match=r'batch_size=12 .* 8 devices .*microbatches=2: take a multiple of 16'):
    steps.make_program(make_run(**{'data.batch_size': 12}), config.Execution(microbatches=2), mesh)
