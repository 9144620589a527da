"""The ledger against the real parameter tree, XLA's cost analysis, and numbers worked by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from scaling import chips, ledger
from scaling.config import Execution, Model
from scaling.errors import UserError
from scaling.models import decoder, presets

SHAPES = {
  **{
    name: dataclasses.replace(presets.get(name), vocab=257)
    for name in ('ladder-4k', 'ladder-125k', 'ladder-4m', 'ladder-100m')
  },
  **{
    name: presets.get(name)
    for name in ('gpt2', 'gpt2-xl', 'gpt3-350m', 'gpt3-175b', 'llama-7b', 'llama2-70b', 'llama3.2-1b', 'mistral-7b')
  },
  'swiglu with bias': Model(vocab=99, bias=True, kv_heads=2, tied=False, qk_norm=True, head_dim=24, mlp_width=72),
  'layernorm without bias': Model(vocab=99, norm='layernorm', mlp='gelu', positions='learned', context=33),
}


@pytest.mark.parametrize('name', SHAPES)
def test_groups_are_those_of_the_real_tree(name):
  model = SHAPES[name]
  counted = dict.fromkeys(('embedding', 'position', 'attention', 'mlp', 'norm', 'head'), 0)
  for path, struct in jax.tree_util.tree_leaves_with_path(decoder.abstract(model)[1]):
    keys = [k.key for k in path]
    if any('norm' in key for key in keys):
      group = 'norm'
    else:
      group = {'positions': 'position'}.get(keys[0], keys[1] if keys[0] == 'blocks' else keys[0])
    counted[group] += struct.size
  expected = ledger.parameters(model)
  assert counted == dataclasses.asdict(expected)
  assert expected.total == sum(counted.values())
  assert expected.non_embedding == counted['attention'] + counted['mlp'] + counted['norm']


# Wide enough that matmuls are nearly all of the work: XLA also counts the elementwise operations.
WIDE = Model(layers=2, width=1024, heads=8, vocab=8192, dtype='float32')
COSTED = {
  'swiglu': WIDE,
  'gelu, biased, untied': dataclasses.replace(
    WIDE, mlp='gelu', norm='layernorm', positions='learned', context=128, bias=True, tied=False
  ),
  'grouped': dataclasses.replace(WIDE, kv_heads=2, layers=3, head_dim=256),
}


@pytest.mark.parametrize('name', COSTED)
def test_exact_flops_agree_with_xla(name):
  model, batch, time = COSTED[name], 2, 128
  execution = Execution(scan_layers=False, attention='reference')

  def loss(params, tokens_bt):
    logits_btv = decoder.apply(model, params, tokens_bt, execution=execution)
    # Cheap per logit, so that the loss adds nothing that is not counted.
    return logits_btv[..., 0].sum() + jnp.vdot(logits_btv, jax.lax.stop_gradient(logits_btv))

  _, shapes = decoder.abstract(model)
  tokens = jax.ShapeDtypeStruct((batch, time), jnp.int32)
  cost = jax.jit(jax.grad(loss)).lower(shapes, tokens).compile().cost_analysis()
  assert cost['flops'] == pytest.approx(ledger.flops_per_token(model, time).exact * batch * time, rel=0.01)


def test_flops_by_hand():
  model = Model(layers=3, width=8, heads=2, kv_heads=1, mlp='gelu', vocab=11, positions='none')
  weights = 8 * 8 * 2 + 8 * 4 * 2 + 2 * 8 * 32
  forward = 2 * (3 * weights + 8 * 11)
  flops = ledger.flops_per_token(model, 10)
  assert flops.exact == 3 * (forward + 3 * 4 * 8 * 10)
  assert flops.exact_causal == 3 * (forward + 3 * 4 * 8 * 5.5)
  n = 3 * (weights + 2 * 8) + 8
  assert flops.kaplan == 6 * n and flops.chinchilla == 6 * (n + 88)


@pytest.mark.parametrize(('time', 'window'), [(7, None), (7, 3), (7, 7), (7, 20), (1, 1), (50, 1)])
def test_mean_keys_by_counting(time, window):
  counted = sum(min(t + 1, window or time) for t in range(time)) / time
  assert ledger.mean_keys(time, window) == pytest.approx(counted)


def test_windows_count_only_in_their_layers():
  dense = Model(layers=4, width=16, heads=2, vocab=5)
  banded = dataclasses.replace(dense, window=4, window_every=2)
  per_key = 3 * 4 * 16
  saved = ledger.flops_per_token(dense, 64).exact_causal - ledger.flops_per_token(banded, 64).exact_causal
  assert saved == pytest.approx(2 * per_key * (ledger.mean_keys(64) - ledger.mean_keys(64, 4)))
  assert ledger.flops_per_token(dense, 64).exact == ledger.flops_per_token(banded, 64).exact


def test_mfu():
  assert ledger.mfu(1e9, 197e3, 1, 'v5e') == pytest.approx(1.0)
  assert ledger.mfu(6e9, 1e5, 8, 'NVIDIA H100 80GB HBM3') == pytest.approx(6e14 / (8 * 989.5e12))
  assert ledger.mfu(1e9, 1e3, 1, 'cpu') is None
  assert ledger.mfu(1e9, 1e3, 1, 'a chip of tomorrow') is None


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('TPU v4', 'v4'),
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v5p', 'v5p'),
    ('TPU v6 lite', 'v6e'),
    ('NVIDIA A100-SXM4-40GB', 'a100-40gb'),
    ('NVIDIA A100-SXM4-80GB', 'a100-80gb'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA H200', 'h200'),
    ('NVIDIA L4', 'l4'),
    ('NVIDIA L40S', None),
    ('NVIDIA GeForce RTX 4090', 'rtx-4090'),
    ('cpu', 'cpu'),
  ],
)
def test_device_kinds(kind, name):
  chip = chips.of_device_kind(kind)
  assert (chip and chip.name) == name


def test_mistakes():
  with pytest.raises(UserError, match=r'model\.vocab'):
    ledger.parameters(Model())
  with pytest.raises(UserError, match=r'model\.context'):
    ledger.parameters(Model(vocab=5, positions='learned'))
  with pytest.raises(UserError, match="'h100'"):
    chips.get('h1000')
