"""The decoder against Hugging Face's GPT-2, LLaMA and Mistral, randomly initialised, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.errors import UserError
from scaling.models import convert, decoder

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

TIME = 40
COMMON = {
  'hidden_size': 32, 'intermediate_size': 88, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'vocab_size': 101,
  'max_position_embeddings': 64, 'initializer_range': 0.2, 'bos_token_id': 0, 'eos_token_id': 0,
}  # fmt: skip


def _gpt2():
  return transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
      n_layer=3, n_embd=32, n_head=4, vocab_size=101, n_positions=64, initializer_range=0.2,
      bos_token_id=0, eos_token_id=0,
    )
  )  # fmt: skip


def _llama(**changes):
  return transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON, **changes))


def _mistral():
  return transformers.MistralForCausalLM(
    transformers.MistralConfig(**COMMON, num_key_value_heads=2, sliding_window=7, attn_implementation='eager')
  )


LLAMA3 = {
  'rope_type': 'llama3', 'rope_theta': 10_000.0, 'factor': 4.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}  # fmt: skip
FAMILIES = {
  'gpt2': _gpt2,
  'llama': _llama,
  'llama, grouped, tied': lambda: _llama(num_key_value_heads=2, tie_word_embeddings=True),
  'llama 3.1': lambda: _llama(num_key_value_heads=1, rope_parameters=LLAMA3),
  'mistral': _mistral,
}


def _randomised(name):
  """Norm scales and biases start at constants, which would hide a mistake in them."""
  torch.manual_seed(0)
  hf = FAMILIES[name]().eval()
  with torch.no_grad():
    for parameter in hf.parameters():
      if parameter.ndim == 1:
        parameter.add_(0.3 * torch.randn_like(parameter))
  return hf


@pytest.mark.parametrize('name', FAMILIES)
def test_logits_and_loss_agree(name):
  hf = _randomised(name)
  model = convert.model_from_hf(hf.config)
  params = convert.from_hf(model, hf.state_dict())
  tokens_bt = np.random.default_rng(0).integers(0, 101, (3, TIME))
  with torch.no_grad():
    theirs = hf(torch.tensor(tokens_bt), labels=torch.tensor(tokens_bt))
  ours_btv = decoder.apply(model, params, jnp.asarray(tokens_bt))
  np.testing.assert_allclose(ours_btv, theirs.logits.numpy(), atol=1e-4, rtol=1e-4)
  log_p = jax.nn.log_softmax(ours_btv[:, :-1])
  loss = -jnp.take_along_axis(log_p, jnp.asarray(tokens_bt)[:, 1:, None], -1).mean()
  assert float(loss) == pytest.approx(float(theirs.loss), abs=1e-4)


@pytest.mark.parametrize('name', ['gpt2', 'llama, grouped, tied', 'mistral'])
def test_export_gives_back_the_state_dict(name):
  hf = _randomised(name)
  model = convert.model_from_hf(hf.config)
  state = {k: v.numpy() for k, v in hf.state_dict().items()}
  back = convert.to_hf(model, convert.from_hf(model, state))
  assert set(state) == set(back)
  for key, value in state.items():
    np.testing.assert_array_equal(back[key], value)


def test_a_missing_name_and_a_wrong_shape_are_told():
  hf = _llama()
  model = convert.model_from_hf(hf.config)
  state = hf.state_dict()
  weight = state.pop('model.norm.weight')
  with pytest.raises(UserError, match=r'model\.norm\.weight'):
    convert.from_hf(model, state)
  with pytest.raises(UserError, match='31 values'):
    convert.from_hf(model, {**state, 'model.norm.weight': weight[1:]})
