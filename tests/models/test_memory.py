"""The estimate of memory against the compiler's, and what must follow from the mesh alone."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from scaling import ledger
from scaling.config import Data, Execution, Model, Run
from scaling.errors import UserError
from scaling.models import presets
from scaling.parallel import mesh as meshes

SMALL = Model(layers=3, width=96, heads=4, vocab=512)
WIDE = Model(layers=4, width=256, heads=8, vocab=2048, mlp='gelu', norm='layernorm', positions='learned', context=256)
CASES = {
  'kept': (SMALL, 8, 128, Execution()),
}
SLOW = {
  'recomputed': (SMALL, 8, 128, Execution(remat='full')),
  'dots': (WIDE, 8, 256, Execution(remat='dots')),
  'microbatches': (WIDE, 16, 256, Execution(microbatches=4)),
  'mostly weights': (WIDE, 1, 64, Execution()),
}


def _run(model, batch, time):
  return Run(model=model, data=Data(batch_size=batch, sequence_length=time, tokens=batch * time))


def _compiled_bytes(run, execution):
  from scaling.train import step

  mesh = meshes.make(meshes.MeshSpec(), jax.devices()[:1])
  program = step.make_program(run, execution, mesh, capacity=1)
  scalar = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
  arguments = (scalar(jnp.float32, 1), scalar(jnp.int32), scalar(jnp.bool_), scalar(jnp.int32, 1))
  batch = step.batch_shapes(run.data, 1, program.batch_sharding)
  analysis = program.train.lower(program.shapes, batch, *arguments).compile().memory_analysis()
  kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return kept + analysis.temp_size_in_bytes


@pytest.mark.parametrize(
  'case', [*CASES.values(), *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW.values())], ids=[*CASES, *SLOW]
)
def test_within_15_percent_of_the_compiler(case):
  model, batch, time, execution = case
  run = _run(model, batch, time)
  estimate = ledger.memory(run, execution, {}, platform='cpu')
  assert estimate.total == pytest.approx(_compiled_bytes(run, execution), rel=0.15)


def test_state_divides_over_fsdp_and_model():
  run = _run(dataclasses.replace(presets.get('llama3.2-1b'), vocab=128_256), 16, 1024)
  alone, parted = (
    ledger.memory(run, Execution(remat='full'), shape, platform='tpu')
    for shape in ({}, {'fsdp': 4, 'model': 2, 'data': 2})
  )
  count = ledger.parameters(run.model)
  assert alone.params == 4 * count.total and alone.optimizer == 8 * count.total
  assert parted.params == pytest.approx(alone.params / 8, rel=1e-3)  # norms are whole everywhere
  assert parted.activations < alone.activations / 8
  assert parted.to_dict()['total'] == parted.total


def test_policies_and_microbatches_order_as_they_should():
  run = _run(presets.get('gpt2'), 8, 1024)
  sizes = {
    remat: ledger.memory(run, Execution(remat=remat), {}, platform='tpu').activations
    for remat in ('none', 'dots', 'attention', 'full')
  }
  assert sizes['none'] > sizes['dots'] > sizes['attention'] > sizes['full']
  halves = ledger.memory(run, Execution(microbatches=2), {}, platform='tpu')
  whole = ledger.memory(run, Execution(), {}, platform='tpu')
  assert halves.activations < whole.activations and halves.gradients == 2 * whole.gradients
  chunked = ledger.memory(run, Execution(loss_chunk=64), {}, platform='cpu')
  assert chunked.logits < ledger.memory(run, Execution(loss_chunk=1024), {}, platform='cpu').logits


def test_flash_attention_keeps_no_scores():
  model = presets.get('gpt2')
  flash, plain = (
    [
      ledger.memory(_run(model, 1, time), Execution(attention=name, loss_chunk=64), {}, platform='gpu').activations
      for time in (512, 1024)
    ]
    for name in ('cudnn', 'reference')
  )
  assert flash[1] == pytest.approx(2 * flash[0], rel=0.15)  # linear in time, but for the weights' copies
  assert plain[1] > 2.3 * plain[0]


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_a_sequence_as_long_as_the_model_is_wide_is_nothing_special(remat):
  """Scores, activations and weights are told apart by their dimensions, which must not be mistaken for each other."""
  model = dataclasses.replace(presets.get('gpt2'), width=1024, heads=16, context=2048)
  sizes = [
    ledger.memory(_run(model, 1, time), Execution(remat=remat), {}, platform='tpu').activations for time in (1024, 1040)
  ]
  assert sizes[1] / sizes[0] == pytest.approx(1040 / 1024, rel=0.02)


def test_mistakes():
  run = _run(SMALL, 8, 128)
  with pytest.raises(UserError, match=r'batch_size=8 does not divide .* = 3'):
    ledger.memory(run, Execution(), {'data': 3})
  with pytest.raises(UserError, match='heads has size 4, which mesh model=3 does not divide'):
    ledger.memory(run, Execution(), {'model': 3})
