"""The one account of a model: parameters by group, training FLOPs in each convention, memory, utilisation.

Plain arithmetic on the config; the tests hold it to the real parameter tree and to XLA's cost analysis.
"""

import dataclasses
from typing import Any

from scaling import chips
from scaling.chips import CHIPS, Chip
from scaling.config import Execution, Model, Run
from scaling.errors import UserError


@dataclasses.dataclass(frozen=True)
class Parameters:
  """Counts by group. Biases count with their matrices; the scales of query and key norms with the norms.

  A tied output projection counts once, in `embedding`, and `head` is then 0.
  """

  embedding: int  # the token table
  position: int  # the learned position table
  attention: int
  mlp: int
  norm: int
  head: int  # an untied output projection

  @property
  def total(self) -> int:
    return self.embedding + self.position + self.attention + self.mlp + self.norm + self.head

  @property
  def non_embedding(self) -> int:
    """What is neither token nor position table nor output projection: N of arXiv:2001.08361, section 2.1."""
    return self.attention + self.mlp + self.norm

  def to_dict(self) -> dict[str, int]:
    return {**dataclasses.asdict(self), 'total': self.total, 'non_embedding': self.non_embedding}


def parameters(model: Model) -> Parameters:
  """Counts the parameters of `model`. Raises UserError where vocab, or the context of learned positions, is not set."""
  _need_vocab(model)
  if model.positions == 'learned' and model.context is None:
    raise UserError('model.context is not set: learned positions need a table length')
  d, f, k = model.width, model.mlp_size, model.head_size
  q_width, kv_width = model.heads * k, model.kv_head_count * k
  attention = 2 * d * q_width + 2 * d * kv_width
  mlp = (3 if model.mlp == 'swiglu' else 2) * d * f
  norm = d * (2 if model.norm == 'layernorm' and model.bias else 1)
  layer_norms = 2 * norm + (2 * k if model.qk_norm else 0)
  if model.bias:
    attention += q_width + 2 * kv_width + d
    mlp += (2 if model.mlp == 'swiglu' else 1) * f + d
  return Parameters(
    embedding=model.vocab * d,
    position=model.context * d if model.positions == 'learned' else 0,
    attention=model.layers * attention,
    mlp=model.layers * mlp,
    norm=model.layers * layer_norms + norm,
    head=0 if model.tied else model.vocab * d,
  )


@dataclasses.dataclass(frozen=True)
class Flops:
  """Training FLOPs per token: forward and backward, the latter taken as twice the former."""

  kaplan: float  # 6 N_non_embedding (arXiv:2001.08361, section 2.1)
  chinchilla: float  # 6 N_total, embeddings included (arXiv:2203.15556, appendix F counts them too)
  exact: float  # matmuls: weights, output projection, and attention over the whole square of positions
  exact_causal: float  # the same, with attention only over positions that the mask and the windows let through

  def to_dict(self) -> dict[str, float]:
    return dataclasses.asdict(self)


def flops_per_token(model: Model, sequence_length: int) -> Flops:
  """Training FLOPs per token at this sequence length.

  The exact counts hold matmuls only, 2 FLOPs per multiply and add. Norms, activations, softmax, rotary turns, the
  embedding look-up and the optimiser are left out. Recomputation under a remat policy never counts.
  """
  count = parameters(model)
  d, k = model.width, model.head_size
  weights = 2 * d * model.heads * k + 2 * d * model.kv_head_count * k
  weights += (3 if model.mlp == 'swiglu' else 2) * d * model.mlp_size
  forward = 2 * (model.layers * weights + d * model.vocab)
  # One position of scores and one of weighted values: 2 FLOPs each per head and head element.
  per_key = 4 * model.heads * k
  full = model.layers * per_key * sequence_length
  causal = sum(per_key * mean_keys(sequence_length, model.layer_window(i)) for i in range(model.layers))
  return Flops(
    kaplan=6.0 * count.non_embedding,
    chinchilla=6.0 * count.total,
    exact=3.0 * (forward + full),
    exact_causal=3.0 * (forward + causal),
  )


def mean_keys(sequence_length: int, window: int | None = None) -> float:
  """Positions that a query sees on average under the causal mask, itself included."""
  w = min(window or sequence_length, sequence_length)
  return (w * (w + 1) / 2 + (sequence_length - w) * w) / sequence_length


def mfu(flops_per_token: float, tokens_per_second: float, chip_count: int, chip: str | Chip) -> float | None:
  """Model FLOPs utilisation (arXiv:2204.02311, appendix B): the share of the chips' peak that a FLOP count makes.

  The convention is that of `flops_per_token`: name it beside the figure. `chip` is a Chip, a name in CHIPS or a
  device kind; None where the chip has no published peak, or is not in the table.
  """
  if isinstance(chip, str):
    chip = CHIPS.get(chip.lower()) or chips.of_device_kind(chip)
  if chip is None or chip.flops is None:
    return None
  return flops_per_token * tokens_per_second / (chip_count * chip.flops)


def memory(run: Run, execution: Execution | None = None, mesh_shape: dict[str, int] | None = None, **kwargs: Any):
  """Bytes per device of a training step: see scaling.models.memory.estimate."""
  from scaling.models.memory import estimate  # imports jax, which the counts above do without

  return estimate(run, execution or Execution(), mesh_shape or {}, **kwargs)


def _need_vocab(model: Model) -> None:
  if model.vocab is None:
    raise UserError('model.vocab is not set: give it, or resolve the run first so that the tokenizer fills it in')
