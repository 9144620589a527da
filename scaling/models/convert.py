"""Parameters to and from Hugging Face state dicts of GPT-2 and of LLaMA-shaped models (LLaMA, Mistral).

A state dict is a mapping of names to arrays. Each name is tied to a path in our tree; how its array is reshaped
follows from the logical axes: stacked `layers` are separate entries there, `heads` and `head_dim` are one dimension,
and a linear layer lies [out, in] (LLaMA) or [in, out] (GPT-2).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scaling import config
from scaling.errors import UserError, unknown
from scaling.models import decoder

FAMILIES = ('gpt2', 'llama')

# Ours, below `blocks`, to theirs, below the layer's prefix.
_GPT2_BLOCK = {
  'attention_norm.scale': 'ln_1.weight',
  'attention_norm.bias': 'ln_1.bias',
  'attention.out': 'attn.c_proj.weight',
  'attention.out_bias': 'attn.c_proj.bias',
  'mlp_norm.scale': 'ln_2.weight',
  'mlp_norm.bias': 'ln_2.bias',
  'mlp.up': 'mlp.c_fc.weight',
  'mlp.up_bias': 'mlp.c_fc.bias',
  'mlp.down': 'mlp.c_proj.weight',
  'mlp.down_bias': 'mlp.c_proj.bias',
}
_GPT2_TOP = {
  'embedding': 'transformer.wte.weight',
  'positions': 'transformer.wpe.weight',
  'norm.scale': 'transformer.ln_f.weight',
  'norm.bias': 'transformer.ln_f.bias',
}
_LLAMA_BLOCK = {
  'attention_norm.scale': 'input_layernorm.weight',
  'attention.query': 'self_attn.q_proj.weight',
  'attention.key': 'self_attn.k_proj.weight',
  'attention.value': 'self_attn.v_proj.weight',
  'attention.out': 'self_attn.o_proj.weight',
  'mlp_norm.scale': 'post_attention_layernorm.weight',
  'mlp.gate': 'mlp.gate_proj.weight',
  'mlp.up': 'mlp.up_proj.weight',
  'mlp.down': 'mlp.down_proj.weight',
}
_LLAMA_TOP = {
  'embedding': 'model.embed_tokens.weight',
  'norm.scale': 'model.norm.weight',
  'head': 'lm_head.weight',
}


def family_of(model: config.Model) -> str:
  """`gpt2` or `llama`. Raises UserError for a model that neither family can hold."""
  plain = not (model.qk_norm or model.attention_softcap or model.logit_softcap) and model.window_every == 1
  if plain and (model.positions, model.norm, model.mlp, model.bias, model.tied) == (
    'learned', 'layernorm', 'gelu', True, True,
  ):  # fmt: skip
    square = model.kv_head_count == model.heads and model.heads * model.head_size == model.width
    if square and model.window is None:
      return 'gpt2'
  if plain and (model.positions, model.norm, model.mlp, model.bias) == ('rotary', 'rmsnorm', 'swiglu', False):
    return 'llama'
  raise UserError('this model has no Hugging Face family here: only GPT-2 and LLaMA shapes are converted')


def from_hf(model: config.Model, state: Mapping[str, Any], family: str | None = None) -> decoder.Params:
  """Our parameters (numpy float32) from a state dict. Raises UserError for a missing name or a wrong shape."""
  family = _family(model, family)
  abstract, axes = _flat(decoder.abstract(model)[1]), _flat(decoder.axes(model))
  flat = {}
  for path, struct in abstract.items():
    if path.startswith('blocks.'):
      inner = path.removeprefix('blocks.')
      layers = [_read(state, family, inner, i, axes[path][1:], struct.shape[1:]) for i in range(model.layers)]
      flat[path] = np.stack(layers)
    else:
      flat[path] = _read(state, family, path, None, axes[path], struct.shape)
  return _nested(flat)


def to_hf(model: config.Model, params: decoder.Params, family: str | None = None) -> dict[str, np.ndarray]:
  """The state dict (numpy float32) that `from_hf` reads back; tied output weights are given under both names."""
  family = _family(model, family)
  axes = _flat(decoder.axes(model))
  out: dict[str, np.ndarray] = {}
  fused: dict[str, dict[str, np.ndarray]] = {}
  for path, array in _flat(params).items():
    array = np.asarray(array, np.float32)
    inner = path.removeprefix('blocks.')
    layers = enumerate(array) if path.startswith('blocks.') else [(None, array)]
    for i, part in layers:
      names = axes[path] if i is None else axes[path][1:]
      name, piece = _their_name(family, inner, i)
      theirs = _to_theirs(part, names, family)
      if piece is None:
        out[name] = theirs
      else:
        fused.setdefault(name, {})[piece] = theirs
  for name, pieces in fused.items():
    out[name] = np.concatenate([pieces[piece] for piece in ('query', 'key', 'value')], -1)
  if model.tied:
    out['lm_head.weight'] = out[(_GPT2_TOP if family == 'gpt2' else _LLAMA_TOP)['embedding']]
  return out


def model_from_hf(hf: Any) -> config.Model:
  """The Model of a Hugging Face config object (or its `to_dict()`). Raises UserError for another model type."""
  values = hf if isinstance(hf, Mapping) else hf.to_dict()
  kind = values.get('model_type')
  if kind == 'gpt2':
    return config.Model(
      layers=values['n_layer'], width=values['n_embd'], heads=values['n_head'], mlp_width=values.get('n_inner'),
      vocab=values['vocab_size'], norm='layernorm', norm_eps=values['layer_norm_epsilon'], mlp='gelu',
      positions='learned', context=values['n_positions'], tied=True, bias=True,
      init_std=values['initializer_range'],
    )  # fmt: skip
  if kind not in ('llama', 'mistral'):
    raise unknown('Hugging Face model type', str(kind), ['gpt2', 'llama', 'mistral'])
  rope = values.get('rope_scaling') or values.get('rope_parameters') or {}
  scaling = None
  if rope.get('rope_type') == 'llama3':
    scaling = config.RopeScaling(
      rope['factor'], rope['low_freq_factor'], rope['high_freq_factor'], rope['original_max_position_embeddings']
    )
  elif rope.get('rope_type', 'default') != 'default':
    raise unknown('rotary scaling', rope['rope_type'], ['default', 'llama3'])
  return config.Model(
    layers=values['num_hidden_layers'], width=values['hidden_size'], heads=values['num_attention_heads'],
    kv_heads=values['num_key_value_heads'], head_dim=values.get('head_dim'), mlp_width=values['intermediate_size'],
    vocab=values['vocab_size'], norm='rmsnorm', norm_eps=values['rms_norm_eps'], mlp='swiglu', positions='rotary',
    rope_theta=float(rope.get('rope_theta') or values.get('rope_theta') or 10_000.0), rope_scaling=scaling,
    tied=values['tie_word_embeddings'], bias=False, window=values.get('sliding_window'),
    init_std=values['initializer_range'],
  )  # fmt: skip


def _family(model: config.Model, family: str | None) -> str:
  if family is not None and family not in FAMILIES:
    raise unknown('family', family, FAMILIES)
  return family or family_of(model)


def _their_name(family: str, path: str, layer: int | None) -> tuple[str, str | None]:
  """Their name for our path, and which part of a fused matrix it is there, if it is one."""
  top, block = (_GPT2_TOP, _GPT2_BLOCK) if family == 'gpt2' else (_LLAMA_TOP, _LLAMA_BLOCK)
  if layer is None:
    return top[path], None
  prefix = f'transformer.h.{layer}.' if family == 'gpt2' else f'model.layers.{layer}.'
  leaf = path.split('.')[-1]
  part = leaf.removesuffix('_bias')
  if family == 'gpt2' and part in ('query', 'key', 'value'):  # one matrix there, in this order
    return prefix + ('attn.c_attn.bias' if leaf.endswith('_bias') else 'attn.c_attn.weight'), part
  return prefix + block[path], None


def _read(state, family: str, path: str, layer: int | None, axes: tuple[str, ...], shape: tuple[int, ...]):
  name, part = _their_name(family, path, layer)
  if name not in state:
    raise UserError(f'the state dict has no {name!r}, which {path} is read from')
  array = np.asarray(state[name], np.float32)
  if part is not None:
    array = np.split(array, 3, -1)[('query', 'key', 'value').index(part)]
  if _transposed(axes, family):
    array = array.T
  if array.size != np.prod(shape):
    raise UserError(f'{name!r} has {array.size} values, and {path} of shape {tuple(shape)} needs {np.prod(shape)}')
  return array.reshape(shape)


def _to_theirs(array: np.ndarray, axes: tuple[str, ...], family: str) -> np.ndarray:
  if 'head_dim' in axes:
    at = axes.index('head_dim')
    array = array.reshape(*array.shape[: at - 1], -1, *array.shape[at + 1 :])
  return array.T if _transposed(axes, family) else array


def _transposed(axes: tuple[str, ...], family: str) -> bool:
  """Their linear layers lie [out, in], but for GPT-2's; the token table lies as ours."""
  return family == 'llama' and 'embed' in axes and axes[0] != 'vocab'


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  out = {}
  for key, value in tree.items():
    out.update(_flat(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {prefix + key: value})
  return out


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  out: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, leaf = path.split('.')
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return out
