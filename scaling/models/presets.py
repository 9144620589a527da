"""Published model shapes by name, and a ladder of shapes for small compute.

presets.get('gpt2-xl')       a published shape
presets.get('ladder-1.5m')   the ladder's shape nearest to 1.5 million non-embedding parameters
"""

import dataclasses
import functools
import math
import re
from typing import Any

from scaling import ledger
from scaling.config import Model, RopeScaling
from scaling.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Published:
  """A published shape with the sequence length it was trained at (tokens) and where its numbers are from."""

  model: Model
  sequence_length: int
  source: str


def _gpt2() -> dict[str, Published]:
  """GPT-2 (Radford et al. 2019, table 2). Head size 64; the sizes are those of the released weights."""
  shapes = {'gpt2': (12, 768), 'gpt2-medium': (24, 1024), 'gpt2-large': (36, 1280), 'gpt2-xl': (48, 1600)}
  out = {}
  for name, (layers, width) in shapes.items():
    model = _gpt_style(layers=layers, width=width, heads=width // 64, context=1024)
    out[name] = Published(model, 1024, 'Radford et al. 2019, table 2')
  return out


def _gpt3() -> dict[str, Published]:
  """GPT-3 (arXiv:2005.14165, table 2.1): dense and locally banded layers alternate (section 2.1).

  The paper does not state the width of the band; 256 is GPT-Neo's, which rebuilt these models. Two rows of the table
  contradict themselves: 1.3B as 24 heads of 128 in width 2048 (16 heads make the width and the count), and 13B as
  width 5140 with 40 heads of 128 (5120).
  """
  shapes = {
    '125m': (12, 768, 12),
    '350m': (24, 1024, 16),
    '760m': (24, 1536, 16),
    '1.3b': (24, 2048, 16),
    '2.7b': (32, 2560, 32),
    '6.7b': (32, 4096, 32),
    '13b': (40, 5120, 40),
    '175b': (96, 12288, 96),
  }
  out = {}
  for name, (layers, width, heads) in shapes.items():
    model = _gpt_style(layers=layers, width=width, heads=heads, context=2048, window=256, window_every=2)
    out[f'gpt3-{name}'] = Published(model, 2048, 'arXiv:2005.14165, table 2.1')
  return out


def _llama1() -> dict[str, Published]:
  """LLaMA (arXiv:2302.13971, table 2); MLP widths and norm epsilon as in the released weights."""
  shapes = {
    '7b': (32, 4096, 32, 11008, 1e-6),
    '13b': (40, 5120, 40, 13824, 1e-6),
    '33b': (60, 6656, 52, 17920, 1e-6),
    '65b': (80, 8192, 64, 22016, 1e-5),
  }
  out = {}
  for name, (layers, width, heads, mlp_width, eps) in shapes.items():
    model = _llama_style(layers=layers, width=width, heads=heads, mlp_width=mlp_width, vocab=32_000, norm_eps=eps)
    out[f'llama-{name}'] = Published(model, 2048, 'arXiv:2302.13971, table 2')
  return out


def _llama2() -> dict[str, Published]:
  """Llama 2 (arXiv:2307.09288, table 1 and appendix A.2.1): grouped-query attention at 70B only."""
  shapes = {
    '7b': (32, 4096, 32, 32, 11008),
    '13b': (40, 5120, 40, 40, 13824),
    '70b': (80, 8192, 64, 8, 28672),
  }
  out = {}
  for name, (layers, width, heads, kv_heads, mlp_width) in shapes.items():
    model = _llama_style(layers=layers, width=width, heads=heads, kv_heads=kv_heads, mlp_width=mlp_width, vocab=32_000)
    out[f'llama2-{name}'] = Published(model, 4096, 'arXiv:2307.09288, table 1')
  return out


def _llama3() -> dict[str, Published]:
  """Llama 3 (arXiv:2407.21783, table 3), 3.1 with its stretched rotary positions, and the 3.2 models' model cards.

  Llama 3.1 and 3.2 are given with the sequence length of their first stage of training.
  """
  shapes = {
    'llama3-8b': (32, 4096, 32, 14336, None, False),
    'llama3-70b': (80, 8192, 64, 28672, None, False),
    'llama3.1-8b': (32, 4096, 32, 14336, 8.0, False),
    'llama3.1-70b': (80, 8192, 64, 28672, 8.0, False),
    'llama3.1-405b': (126, 16384, 128, 53248, 8.0, False),
    'llama3.2-1b': (16, 2048, 32, 8192, 32.0, True),
    'llama3.2-3b': (28, 3072, 24, 8192, 32.0, True),
  }
  out = {}
  for name, (layers, width, heads, mlp_width, factor, tied) in shapes.items():
    model = _llama_style(
      layers=layers, width=width, heads=heads, kv_heads=8, mlp_width=mlp_width, vocab=128_256, tied=tied,
      rope_theta=500_000.0, rope_scaling=RopeScaling(factor=factor) if factor else None,
    )  # fmt: skip
    out[name] = Published(model, 8192, 'arXiv:2407.21783, table 3; Llama 3.2: its model card')
  return out


def _mistral() -> dict[str, Published]:
  """Mistral 7B (arXiv:2310.06825, table 1): every layer sees a window of 4096."""
  model = _llama_style(
    layers=32, width=4096, heads=32, kv_heads=8, mlp_width=14336, vocab=32_000, window=4096
  )  # fmt: skip
  return {'mistral-7b': Published(model, 8192, 'arXiv:2310.06825, table 1')}


def _gpt_style(**shape: Any) -> Model:
  return Model(
    vocab=50_257, norm='layernorm', mlp='gelu', positions='learned', tied=True, bias=True, norm_eps=1e-5, **shape
  )


def _llama_style(**shape: Any) -> Model:
  shape = {'tied': False, 'norm_eps': 1e-5, **shape}
  return Model(norm='rmsnorm', mlp='swiglu', positions='rotary', bias=False, **shape)


@functools.cache
def _table() -> dict[str, Published]:
  return {**_gpt2(), **_gpt3(), **_llama1(), **_llama2(), **_llama3(), **_mistral()}


RUNGS = (
  '4k', '8k', '16k', '32k', '64k', '125k', '250k', '500k',
  '1m', '2m', '4m', '8m', '16m', '32m', '64m', '100m',
)  # fmt: skip


def names() -> list[str]:
  """All preset names; `ladder-<size>` is accepted for any other size too."""
  return [*_table(), *(f'ladder-{rung}' for rung in RUNGS)]


def get(name: str) -> Model:
  """The model of this name. Raises UserError for an unknown name, with the nearest known ones."""
  if name.startswith('ladder-'):
    return ladder(_size(name))
  return published(name).model


def published(name: str) -> Published:
  """A published shape with its sequence length and source. Raises UserError for an unknown name."""
  if name not in _table():
    raise unknown('preset', name, names())
  return _table()[name]


def _size(name: str) -> int:
  match = re.fullmatch(r'ladder-(\d+(?:\.\d+)?)([kmb]?)', name.lower())
  if not match:
    raise UserError(f'unknown preset {name!r}: a ladder size is a number with k, m or b, for instance ladder-16k')
  return round(float(match[1]) * {'': 1, 'k': 1e3, 'm': 1e6, 'b': 1e9}[match[2]])


def ladder(n_non_embedding: int, **overrides: Any) -> Model:
  """The ladder's shape for this many non-embedding parameters; `overrides` are other Model fields.

  The rule: depth grows as N^(1/5) from 2 layers at 16k, so that width grows near N^(2/5), as depth squared: the same
  slow growth of depth as in GPT-3's table. The head size is a multiple of 8 near 2 sqrt(width); above eight heads their
  number is even. The MLP width is the multiple of 4 that brings the count nearest to what is asked. Among all such
  shapes that one is taken whose depth, MLP ratio (8/3 for SwiGLU, 4 for GELU) and head size are nearest to their
  rule, in squared logarithms; the head size, which matters least, with a tenth of the weight.
  The initial standard deviation is sqrt(2 / (5 width)) (arXiv:1910.05895, section 2.2), as 0.02 is too little
  for narrow models. Raises UserError below 1,000 parameters.
  """
  if n_non_embedding < 1000:
    raise UserError(f'a ladder model of {n_non_embedding} non-embedding parameters is too small: ask for at least 1000')
  depth = 2 * (n_non_embedding / 16_000) ** 0.2
  best, best_cost = None, math.inf
  for layers in {max(1, math.floor(depth)), math.ceil(depth)}:
    for heads, head_dim in _heads(math.sqrt(n_non_embedding / (12 * layers))):
      width = heads * head_dim
      shape = {
        'layers': layers, 'width': width, 'heads': heads,
        'init_std': round(math.sqrt(2 / (5 * width)), 4), **overrides,
      }  # fmt: skip
      model = _fill_mlp(shape, n_non_embedding)
      if model is None:
        continue
      ratio = model.mlp_size / width / (4 if model.mlp == 'gelu' else 8 / 3)
      head_ratio = head_dim / max(8, 2 * math.sqrt(width))
      cost = math.log(layers / depth) ** 2 + math.log(ratio) ** 2 + 0.1 * math.log(head_ratio) ** 2
      if cost < best_cost:
        best, best_cost = model, cost
  return best


def _heads(width: float) -> list[tuple[int, int]]:
  """Numbers and sizes of heads that make widths from 0.6 to 1.6 of `width`, or the narrowest of all."""
  size = round(2 * math.sqrt(width) / 8) * 8
  out = []
  for head_dim in {max(8, size - 16), max(8, size - 8), max(8, size), size + 8, size + 16}:
    for heads in range(1, int(1.6 * width / head_dim) + 2):
      if (heads <= 8 or heads % 2 == 0) and (0.6 <= heads * head_dim / width <= 1.6 or heads * head_dim <= 8):
        out.append((heads, head_dim))
  return out


def _fill_mlp(shape: dict[str, Any], n_non_embedding: int) -> Model | None:
  """The model whose MLP width brings the count nearest; None where attention alone is too large."""

  def count(mlp_width: int) -> int:
    return ledger.parameters(Model(**{'vocab': 1, 'context': 1, **shape, 'mlp_width': mlp_width})).non_embedding

  per_unit = (count(8) - count(4)) / 4
  mlp_width = round((n_non_embedding - count(4) + 4 * per_unit) / per_unit / 4) * 4
  return Model(**{**shape, 'mlp_width': mlp_width}) if mlp_width >= 4 else None
