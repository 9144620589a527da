"""Kernels of accelerators against the float64 formula, without accelerators; and the ring on simulated devices.

Splash runs in interpret mode, and through the TPU compiler where libtpu is installed. cuDNN attention is lowered for
CUDA and its custom calls are read. Errors are the largest difference over the largest value of the formula's result.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import Data, Execution, Model, Run
from scaling.errors import UserError
from scaling.parallel import aot, attention_cudnn, attention_reference, attention_splash, kernels, mesh, ring, topology
from scaling.parallel.mesh import MeshSpec

needs_tpu_compiler = pytest.mark.skipif(not topology.available(), reason='libtpu is not installed: pip install .[tpu]')

# Largest error of the output and of the three gradients.
TOLERANCE = {'float32': 2e-6, 'bfloat16': 2e-2}
PLAIN = {'causal': True, 'window': None, 'segments_bt': None, 'softcap': None, 'alibi': False}


def inputs(b, t, h, kv, d, dtype='float32', documents=False):
  keys = jax.random.split(jax.random.key(0), 5)
  shapes = ((b, t, h, d), (b, t, kv, d), (b, t, kv, d))
  q, k, v = (jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=False))
  cotangent = jax.random.normal(keys[3], q.shape).astype(dtype)
  starts_bt = jax.random.bernoulli(keys[4], 4 / t, (b, t))
  return (q, k, v, cotangent), jnp.cumsum(starts_bt, 1, dtype=jnp.int32) if documents else None


def with_gradients(attention, q, k, v, cotangent):
  out, pull = jax.vjp(attention, q, k, v)
  return out, *pull(cotangent)


def in_float64(arrays, **options):
  with jax.enable_x64(True):
    arrays = [jnp.asarray(np.asarray(x, np.float64)) for x in arrays]
    found = with_gradients(lambda q, k, v: attention_reference.reference(q, k, v, **options), *arrays)
    return [np.asarray(x) for x in found]


def assert_agree(found, expected, dtype):
  for name, x, y in zip(('out', 'dq', 'dk', 'dv'), found, expected, strict=True):
    error = np.abs(np.asarray(x, np.float64) - y).max() / np.abs(y).max()
    assert error < TOLERANCE[dtype], f'{name}: {error:.1e}'


SPLASH = [
  # b, t, h, kv, d, dtype, documents, options
  (1, 128, 2, 2, 64, 'float32', False, {}),
  (2, 200, 4, 2, 16, 'float32', True, {}),
  (1, 384, 2, 1, 32, 'float32', True, {'window': 40, 'softcap': 5.0}),
  (1, 256, 2, 1, 64, 'bfloat16', False, {'window': 150}),
  (1, 140, 2, 1, 32, 'float32', False, {'causal': False}),
]


@pytest.mark.parametrize(('b', 't', 'h', 'kv', 'd', 'dtype', 'documents', 'options'), SPLASH)
def test_splash_agrees_with_the_formula(b, t, h, kv, d, dtype, documents, options):
  arrays, segments_bt = inputs(b, t, h, kv, d, dtype, documents)
  options = {**PLAIN, 'segments_bt': segments_bt, **options}
  attention = functools.partial(attention_splash.splash, interpret=True, **options)
  found = jax.jit(functools.partial(with_gradients, attention))(*arrays)
  assert_agree(found, in_float64(arrays, **options), dtype)


@pytest.mark.parametrize(('sizes', 'kv'), [('data=2,model=2', 1), ('fsdp=2,sequence=2,model=2', 2)])
def test_splash_on_a_mesh_takes_each_devices_rows_and_heads(sizes, kv):
  arrays, segments_bt = inputs(4, 128, 4, kv, 16, documents=True)
  spec = MeshSpec.parse(sizes)
  options = {**PLAIN, 'segments_bt': segments_bt}
  with mesh.use(mesh.make(spec, jax.devices()[: spec.size])):
    attention = functools.partial(attention_splash.splash, interpret=True, **options)
    found = jax.jit(functools.partial(with_gradients, attention))(*arrays)
  assert_agree(found, in_float64(arrays, **options), 'float32')


@pytest.mark.parametrize(('time', 'head', 'window', 'size'), [(2048, 64, None, 512), (2048, 256, None, 256),
  (640, 64, None, 128), (3072, 128, None, 512), (768, 128, None, 384), (2048, 64, 100, 128), (2048, 64, 256, 256)])  # fmt: skip
def test_splash_blocks_divide_the_sequence(time, head, window, size):
  assert attention_splash.block_size(time, head, window) == size


def test_what_splash_lacks_is_one_line():
  (q, k, v, _), _ = inputs(1, 128, 2, 2, 8)
  with pytest.raises(UserError, match='ALiBi'):
    attention_splash.splash(q, k, v, **{**PLAIN, 'alibi': True})
  with pytest.raises(UserError, match='64 for 128'):
    attention_splash.splash(q, k[:, :64], v[:, :64], **PLAIN)
  with pytest.raises(UserError, match='float64'), jax.enable_x64(True):
    attention_splash.splash(*(x.astype(jnp.float64) for x in (q, k, v)), **PLAIN)


@pytest.mark.parametrize(('name', 'platform'), [('splash', 'tpu'), ('cudnn', 'gpu')])
def test_a_kernel_named_on_another_platform(name, platform):
  (q, k, v, _), _ = inputs(1, 16, 2, 2, 8)
  with pytest.raises(UserError, match=f'attention={name} runs on {platform} and this program is for cpu: take auto'):
    kernels.attention(q, k, v, implementation=name)


def chosen(monkeypatch, platform, dtype, **options):
  """The implementation that 'auto' stands for."""
  monkeypatch.setattr(kernels, 'target_platform', lambda: platform)
  for name in kernels.IMPLEMENTATIONS:
    monkeypatch.setitem(kernels.IMPLEMENTATIONS, name, lambda *_, name=name, **__: name)
  q, k, v = inputs(1, 16, 4, 2, 8, dtype)[0][:3]
  return kernels.attention(q, k, v, **options)


@pytest.mark.parametrize(
  ('platform', 'dtype', 'options', 'name'),
  [
    ('tpu', 'bfloat16', {'window': 4, 'softcap': 5.0}, 'splash'),
    ('tpu', 'bfloat16', {'alibi': True}, 'reference'),
    ('gpu', 'bfloat16', {'window': 4}, 'cudnn'),
    ('gpu', 'float16', {'segments_bt': jnp.zeros((1, 16), jnp.int32)}, 'cudnn'),
    ('gpu', 'float32', {}, 'reference'),
    ('gpu', 'bfloat16', {'softcap': 5.0}, 'reference'),
    ('gpu', 'bfloat16', {'alibi': True}, 'reference'),
    ('cpu', 'float32', {}, 'blocks'),
  ],
)
def test_auto_takes_the_kernel_where_it_has_all_that_is_asked(monkeypatch, platform, dtype, options, name):
  assert chosen(monkeypatch, platform, dtype, **options) == name


def lowered_for_cuda(monkeypatch, function, *arrays):
  from jax._src.cudnn import fused_attention_stablehlo

  monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 91000)
  return jax.jit(function).trace(*arrays).lower(lowering_platforms=('cuda',)).as_text().replace(r'\22', '"')


@pytest.mark.parametrize(
  ('documents', 'options', 'call'),
  [
    (False, {}, '__cudnn$fmhaSoftmax'),
    (False, {'window': 5}, '__cudnn$fmhaSoftmax'),
    (True, {}, '__cudnn$fmhaScaleBiasSoftmax'),
    (True, {'window': 5}, '__cudnn$fmhaScaleBiasSoftmax'),
    (False, {'window': 5, 'causal': False}, '__cudnn$fmhaScaleBiasSoftmax'),
  ],
)
def test_cudnn_lowers_to_its_kernels(monkeypatch, documents, options, call):
  arrays, segments_bt = inputs(2, 24, 4, 2, 16, 'bfloat16', documents)
  options = {**PLAIN, 'segments_bt': segments_bt, **options}
  attention = functools.partial(attention_cudnn.cudnn, **options)
  text = lowered_for_cuda(monkeypatch, functools.partial(with_gradients, attention), *arrays)
  assert re.search(re.escape(call) + r'\b', text)
  assert f'{call}Backward' in text
  kind = 'CAUSAL' if options['causal'] else 'NO_MASK'
  assert re.search(rf'mask_type\W+{kind}\b', text)
  if not documents and options['causal']:
    length = options.get('window') or 0
    assert re.search(rf'sliding_window_length\W+{length}\b', text)
    assert '24x24' not in text  # no array of queries by keys


def test_cudnn_on_a_mesh_lowers_to_the_shards_of_each_device(monkeypatch):
  arrays, _ = inputs(4, 24, 4, 1, 16, 'bfloat16')
  with mesh.use(mesh.make(MeshSpec(data=2, model=2), jax.devices()[:4])):
    attention = functools.partial(attention_cudnn.cudnn, **PLAIN)
    text = lowered_for_cuda(monkeypatch, functools.partial(with_gradients, attention), *arrays)
  call = next(line for line in text.splitlines() if '__cudnn$fmhaSoftmax' in line and 'Backward' not in line)
  assert 'tensor<2x24x2x16xbf16>, tensor<2x24x1x16xbf16>' in call


@pytest.mark.parametrize(
  ('shape', 'dtype', 'options', 'said'),
  [
    ((24, 16), 'float32', {}, 'float32.*model.dtype=bfloat16'),
    ((24, 16), 'bfloat16', {'softcap': 5.0}, 'attention_softcap=5.0'),
    ((24, 16), 'bfloat16', {'alibi': True}, 'ALiBi'),
    ((24, 12), 'bfloat16', {}, 'multiple of 8 up to 256, not 12'),
    ((23, 16), 'bfloat16', {'window': 5, 'causal': False}, 'even sequence length, not 23'),
  ],
)
def test_what_cudnn_lacks_is_one_line(shape, dtype, options, said):
  time, size = shape
  (q, k, v, _), _ = inputs(1, time, 2, 2, size, dtype)
  with pytest.raises(UserError, match=said) as error:
    attention_cudnn.cudnn(q, k, v, **{**PLAIN, **options})
  assert '\n' not in str(error.value)


def square_arrays(text, n):
  return {m[0] for m in re.finditer(r'\b[a-z]+\d+\[([\d,]+)\]', text) if m[1].split(',').count(str(n)) >= 2}


@needs_tpu_compiler
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_training_step_for_tpu_uses_splash_and_holds_no_scores(monkeypatch):
  texts = []
  speed = aot._speed
  monkeypatch.setattr(aot, '_speed', lambda *args: texts.append(args[-1].text) or speed(*args))
  model = Model(layers=2, width=256, heads=4, kv_heads=1, head_dim=64, vocab=1024)
  run = Run(model, Data(batch_size=8, sequence_length=640, tokens=8 * 640, document_mask=True), name='small')
  aot.compile_run(run, Execution(), 'v5e:2x2', 'data=2,model=2')
  assert texts[0].count('tpu_custom_call') >= 3  # forward, and backward for queries and for keys and values
  assert square_arrays(texts[0], 640) == set()
  # The same look at a model whose attention has no kernel finds its scores.
  plain = dataclasses.replace(run, model=dataclasses.replace(model, positions='alibi'))
  aot.compile_run(plain, Execution(), 'v5e:2x2', 'data=2,model=2')
  assert square_arrays(texts[1], 640)


RING = [
  ('context=2', 2, 'float32', False, {}),
  ('context=4', 2, 'float32', True, {'softcap': 5.0, 'alibi': True}),
  ('context=2,model=4', 2, 'float32', True, {'window': 9, 'alibi': True}),
  ('data=2,context=2', 2, 'bfloat16', True, {}),
  ('context=4', 1, 'float32', False, {'causal': False, 'window': 9}),
]


@pytest.mark.parametrize(('sizes', 'kv', 'dtype', 'documents', 'options'), RING)
def test_ring_agrees_with_the_formula_in_its_order(sizes, kv, dtype, documents, options):
  arrays, segments_bt = inputs(2, 48, 4, kv, 8, dtype, documents)
  spec = MeshSpec.parse(sizes)
  order = ring.order(48, spec.context)
  options = {**PLAIN, **options}
  with mesh.use(mesh.make(spec, jax.devices()[: spec.size])):
    there = None if segments_bt is None else segments_bt[:, order]
    attention = functools.partial(ring.ring, positions_bt=order[None], **{**options, 'segments_bt': there})
    found = jax.jit(functools.partial(with_gradients, attention))(*(x[:, order] for x in arrays))
  back = np.argsort(order)
  expected = in_float64(arrays, **{**options, 'segments_bt': segments_bt})
  assert_agree([np.asarray(x)[:, back] for x in found], expected, dtype)


def test_ring_is_the_choice_of_auto_where_the_sequence_is_split():
  arrays, _ = inputs(1, 24, 2, 2, 8)
  with mesh.use(mesh.make(MeshSpec(context=2), jax.devices()[:2])):
    text = jax.jit(kernels.attention).lower(*arrays[:3]).as_text()
    found = jax.jit(functools.partial(with_gradients, kernels.attention))(*arrays)
  assert 'collective_permute' in text
  assert_agree(found, in_float64(arrays, **PLAIN), 'float32')


def test_the_rings_order_gives_each_device_an_early_and_a_late_chunk():
  assert ring.order(8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
  assert ring.order(10, 2).tolist() == list(range(10))  # no four chunks
  order = ring.order(960, 8)
  assert sorted(order) == list(range(960))
  keys_seen = (order + 1).reshape(8, -1).sum(1)
  assert len(set(keys_seen.tolist())) == 1


def test_the_ring_skips_blocks_that_see_nothing():
  options = ring._Options(1, True, 4, None, 4, 1.0)
  seen = [[bool(ring._may_see(options, jnp.arange(q, q + 4), jnp.arange(s, s + 4))) for s in range(0, 16, 4)]
          for q in range(0, 16, 4)]  # fmt: skip
  assert np.array_equal(seen, np.eye(4, dtype=bool) | np.eye(4, k=-1, dtype=bool))


def test_a_sequence_that_the_ring_cannot_divide():
  (q, k, v, _), _ = inputs(1, 23, 2, 2, 8)
  said = r'sequence of 23 does not divide over context=4: .* for instance 24'
  with mesh.use(mesh.make(MeshSpec(context=4), jax.devices()[:4])), pytest.raises(UserError, match=said):
    kernels.attention(q, k, v)


@pytest.fixture(scope='module')
def training(tiny_run):
  """A function: losses, gradient norms of three steps on a mesh, and the loss after them; a model of every mask."""
  from scaling.data.stream import Batch
  from scaling.train import step

  run = tiny_run({'data.document_mask': 'true', 'model.positions': 'rotary', 'model.window': '12'})
  shape = (3, 1, run.data.batch_size, run.data.sequence_length + 1)
  tokens = np.random.default_rng(0).integers(0, run.model.vocab, shape, np.int32)
  segments = np.cumsum(tokens < run.model.vocab // 16, -1, dtype=np.int32)

  @functools.cache
  def trained(sizes):
    spec = MeshSpec.parse(sizes)
    devices = mesh.make(spec, jax.devices()[: spec.size])
    program = step.make_program(run, Execution(), devices, capacity=1)
    state, rows = program.init(jax.random.key(0)), []
    signals = np.zeros(devices.size, np.int32)
    for batch in map(Batch, tokens, segments):
      state, metrics = program.train(state, batch, np.array([1e-2], np.float32), 1, True, signals)
      rows.append((float(metrics.last_loss), float(metrics.grad_norm)))
    after = float(program.evaluate(state.params, Batch(tokens[0], segments[0])))
    return np.array([*np.ravel(rows), after])

  return trained


@pytest.mark.parametrize('sizes', ['context=2', pytest.param('data=2,context=2,model=2', marks=pytest.mark.slow)])
def test_training_over_a_split_sequence_equals_one_device(training, sizes):
  np.testing.assert_allclose(training(sizes), training(''), rtol=1e-4)
