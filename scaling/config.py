"""What a run is: frozen dataclasses with canonical JSON, a content-hash id and overrides by path.

A `Run` holds everything that can change its result, and nothing else: its id is a hash of it.
Where and how it runs (mesh, kernels, checkpoints) is an `Execution`, which has no part in the id.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from scaling.errors import UserError, unknown


def _require(ok: bool, message: str) -> None:
  if not ok:
    raise UserError(message)


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise unknown(field, value, choices)


def _positive(section: str, obj: Any, *names: str) -> None:
  for name in names:
    value = getattr(obj, name)
    _require(
      value is None or (math.isfinite(value) and value > 0),
      f'{section}.{name} is {value}: it must be greater than 0',
    )


NORMS = ('layernorm', 'rmsnorm')
MLPS = ('gelu', 'swiglu')
POSITIONS = ('learned', 'rotary', 'alibi', 'none')
DTYPES = ('auto', 'float32', 'bfloat16')
SCHEDULES = ('constant', 'cosine', 'linear', 'wsd')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3's frequency-dependent stretching of rotary wavelengths (arXiv:2407.21783, section 3.4)."""

  factor: float = 8.0
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_context: int = 8192


@dataclasses.dataclass(frozen=True)
class Model:
  """A pre-norm decoder. `None` means: derived from the other fields, as the comment says."""

  layers: int = 2
  width: int = 64
  heads: int = 4
  kv_heads: int | None = None  # heads: multi-head; fewer: grouped-query (arXiv:2305.13245)
  head_dim: int | None = None  # width / heads
  mlp_width: int | None = None  # gelu: 4 width; swiglu: 8/3 width rounded up to a multiple of 8
  vocab: int | None = None  # the tokenizer's size
  norm: str = 'rmsnorm'
  norm_eps: float = 1e-5
  mlp: str = 'swiglu'
  positions: str = 'rotary'
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  context: int | None = None  # rows of the learned position table: data.sequence_length
  tied: bool = True  # the output projection is the transposed embedding
  bias: bool = False
  qk_norm: bool = False
  window: int | None = None  # sliding window: a query sees this many last positions, itself included
  window_every: int = 1  # 2: odd layers banded, even ones dense, as GPT-3 (arXiv:2005.14165, section 2.1)
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  init_std: float = 0.02
  dtype: str = 'auto'  # of the matmuls; weights stay float32. auto: bfloat16 on GPU and TPU, float32 on CPU

  def __post_init__(self) -> None:
    _positive(
      'model', self, 'layers', 'width', 'heads', 'kv_heads', 'head_dim', 'mlp_width', 'vocab', 'norm_eps',
      'rope_theta', 'context', 'window', 'window_every', 'attention_softcap', 'logit_softcap', 'init_std',
    )  # fmt: skip
    _one_of('model.norm', self.norm, NORMS)
    _one_of('model.mlp', self.mlp, MLPS)
    _one_of('model.positions', self.positions, POSITIONS)
    _one_of('model.dtype', self.dtype, DTYPES)
    if self.head_dim is None and self.width % self.heads:
      near = [h for h in range(1, self.width + 1) if self.width % h == 0]
      near = min(near, key=lambda h: abs(h - self.heads))
      raise UserError(
        f'model.heads={self.heads} does not divide model.width={self.width}: take heads={near}, or set model.head_dim'
      )
    if self.heads % self.kv_head_count:
      raise UserError(
        f'model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}: take a divisor of {self.heads}'
      )
    if self.positions == 'rotary' and self.head_size % 2:
      raise UserError(
        f'model.positions=rotary needs an even head size, and width/heads is {self.head_size}: set model.head_dim'
      )

  @property
  def kv_head_count(self) -> int:
    return self.kv_heads or self.heads

  @property
  def head_size(self) -> int:
    return self.head_dim or self.width // self.heads

  @property
  def mlp_size(self) -> int:
    if self.mlp_width:
      return self.mlp_width
    return 4 * self.width if self.mlp == 'gelu' else -(-8 * self.width // 24) * 8

  def layer_window(self, layer: int) -> int | None:
    """The sliding window of a layer, or None where it is dense."""
    return self.window if layer % self.window_every == self.window_every - 1 else None


@dataclasses.dataclass(frozen=True)
class Data:
  """The text, its tokens, and how many of them are seen."""

  corpus: str = 'sotu'  # a name in scaling.data.corpora, or a path to a folder, JSONL or Parquet
  tokenizer: str = 'bytes'  # bytes | bpe-<vocabulary size> | gpt2
  tokens: int = 1_000_000  # the budget; whole batches are trained, so at most one batch fewer
  batch_size: int = 8  # sequences
  sequence_length: int = 128
  unique_tokens: int | None = None  # only this many training tokens are ever seen, repeated as needed
  order_seed: int | None = None  # of the data order; None: the run's seed
  document_mask: bool = False  # attention stays inside a document
  validation_fraction: float = 0.05  # of documents, by hash
  validation_tokens: int = 65_536  # the fixed held-out set that each evaluation reads
  fingerprint: str | None = None  # content hash of the tokens, filled in by scaling.data.resolve

  def __post_init__(self) -> None:
    _positive('data', self, 'tokens', 'batch_size', 'sequence_length', 'unique_tokens', 'validation_tokens')
    _require(
      0 < self.validation_fraction < 1, f'data.validation_fraction is {self.validation_fraction}: take one in (0, 1)'
    )
    if self.tokens < self.batch_tokens:
      raise UserError(
        f'data.tokens={self.tokens} is fewer than one batch: '
        f'batch_size {self.batch_size} x sequence_length {self.sequence_length} = {self.batch_tokens}'
      )
    if self.unique_tokens is not None and self.unique_tokens < self.sequence_length + 1:
      raise UserError(
        f'data.unique_tokens={self.unique_tokens} is shorter than one sequence of {self.sequence_length} and its target'
      )

  @property
  def batch_tokens(self) -> int:
    return self.batch_size * self.sequence_length

  @property
  def steps(self) -> int:
    return self.tokens // self.batch_tokens

  @property
  def trained_tokens(self) -> int:
    """Tokens really trained: whole batches."""
    return self.steps * self.batch_tokens


@dataclasses.dataclass(frozen=True)
class Optim:
  """AdamW with a warm-up and a schedule. Durations are fractions of the run, or steps where the name says so."""

  learning_rate: float = 1e-3  # the peak
  schedule: str = 'cosine'
  warmup_fraction: float = 0.05
  warmup_steps: int | None = None  # overrides warmup_fraction
  decay_fraction: float = 0.2  # wsd: the last part of the run, in which the rate falls linearly
  final_fraction: float = 0.1  # of the peak, reached at the last step (cosine, linear, wsd)
  beta1: float = 0.9
  beta2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1  # times the learning rate, on matrices only (see train/optim.py)
  clip_norm: float | None = 1.0

  def __post_init__(self) -> None:
    _positive('optim', self, 'learning_rate', 'eps', 'clip_norm')
    _one_of('optim.schedule', self.schedule, SCHEDULES)
    for name in ('warmup_fraction', 'decay_fraction', 'final_fraction'):
      value = getattr(self, name)
      _require(0 <= value <= 1, f'optim.{name} is {value}: it is a fraction in [0, 1]')
    for name in ('beta1', 'beta2'):
      value = getattr(self, name)
      _require(0 <= value < 1, f'optim.{name} is {value}: take one in [0, 1)')
    _require(self.weight_decay >= 0, f'optim.weight_decay is {self.weight_decay}: it must not be negative')
    _require(
      self.warmup_steps is None or self.warmup_steps >= 0,
      f'optim.warmup_steps is {self.warmup_steps}: it must not be negative',
    )


@dataclasses.dataclass(frozen=True)
class Run:
  """One training: everything that can change its result, and a name that cannot."""

  model: Model = dataclasses.field(default_factory=Model)
  data: Data = dataclasses.field(default_factory=Data)
  optim: Optim = dataclasses.field(default_factory=Optim)
  seed: int = 0
  evaluations: int = 10  # evenly spaced over the run, the last at its end
  name: str = ''  # for people; no part of the id

  def __post_init__(self) -> None:
    _positive('run', self, 'evaluations')
    m, d = self.model, self.data
    if m.positions == 'learned' and m.context is not None and m.context < d.sequence_length:
      raise UserError(f'model.context={m.context} is shorter than data.sequence_length={d.sequence_length}')

  @property
  def run_id(self) -> str:
    """First 12 hexadecimal digits of the hash of `identity`; resolve the run first (scaling.data.resolve)."""
    return hashlib.sha256(canonical_json(identity(self)).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Execution:
  """Where and how a run runs. Changes its speed and memory, and its result only by rounding."""

  mesh: str = 'auto'  # 'data=4,model=2'; auto: chosen for the devices and the model
  attention: str = 'auto'  # a name in scaling.parallel.kernels; auto: by platform
  remat: str = 'none'  # a policy name in scaling.parallel.remat
  microbatches: int = 1  # gradient accumulation: parts of a batch
  loss_chunk: int | None = None  # positions per chunk of the cross-entropy; None: chosen by memory
  scan_layers: bool | None = None  # None: scanned, except on CPU where a few layers run faster in a row
  checkpoint_seconds: float = 60.0  # between checkpoints; 0: at each evaluation
  keep_checkpoints: int = 2
  profile: str = ''  # 'FIRST:LAST' steps to trace into RUN_DIR/profile

  def __post_init__(self) -> None:
    _positive('execution', self, 'microbatches', 'loss_chunk', 'keep_checkpoints')


def to_dict(obj: Any) -> dict[str, Any]:
  """A config as nested plain dicts."""
  return dataclasses.asdict(obj)


def from_dict(cls: type, values: Mapping[str, Any], path: str = '') -> Any:
  """Builds a config dataclass from nested dicts; unknown fields and wrong types are UserErrors."""
  fields = {f.name: f for f in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  kwargs = {}
  for key, value in values.items():
    where = f'{path}{key}'
    if key not in fields:
      raise unknown('field', where, [f'{path}{name}' for name in fields])
    kwargs[key] = _coerce(hints[key], value, where)
  return cls(**kwargs)


def replace(config: Any, overrides: Mapping[str, Any], prefix: str = '') -> Any:
  """A copy with `{'optim.learning_rate': 1e-3, 'model': Model(...), ...}` put in.

  Values may be strings as typed on a command line. All overrides take effect together, so that the
  result is validated once. Raises UserError for an unknown path or a value of the wrong type.
  """
  values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  hints = typing.get_type_hints(type(config))
  nested: dict[str, dict[str, Any]] = {}
  for path, value in overrides.items():
    head, _, rest = path.partition('.')
    if head not in values:
      raise unknown('field', prefix + path, paths(type(config), prefix))
    if rest:
      nested.setdefault(head, {})[rest] = value
    else:
      values[head] = _coerce(hints[head], value, prefix + path)
  for head, rest in nested.items():
    cls = _dataclass_of(hints[head])
    if cls is None:
      raise unknown('field', f'{prefix}{head}.{next(iter(rest))}', paths(type(config), prefix))
    values[head] = replace(values[head] if values[head] is not None else cls(), rest, f'{prefix}{head}.')
  return type(config)(**values)


def paths(cls: type, prefix: str = '') -> list[str]:
  """All settable paths of a config class: `model.layers`, `data.tokens`, ..."""
  out = []
  for field, hint in typing.get_type_hints(cls).items():
    inner = _dataclass_of(hint)
    out.append(prefix + field)
    if inner is not None:
      out += paths(inner, f'{prefix}{field}.')
  return out


def parse_override(text: str) -> tuple[str, str]:
  """Splits `path=value`."""
  path, equals, value = text.partition('=')
  if not equals or not path:
    raise UserError(f'--set {text!r}: write path=value, for instance optim.learning_rate=3e-3')
  return path.strip(), value.strip()


def canonical_json(value: Any) -> str:
  """JSON with sorted keys and no spaces: equal values give equal text."""
  return json.dumps(value, sort_keys=True, separators=(',', ':'), allow_nan=False)


def identity(run: Run) -> dict[str, Any]:
  """What a run's id is a hash of: all but the name; the corpus counts by its content where that is known."""
  values = to_dict(run)
  del values['name']
  if values['data']['fingerprint']:
    del values['data']['corpus']
  return values


def _dataclass_of(hint: Any) -> type | None:
  for option in _options(hint):
    if dataclasses.is_dataclass(option):
      return option
  return None


def _options(hint: Any) -> tuple[Any, ...]:
  return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _coerce(hint: Any, value: Any, where: str) -> Any:
  """`value` as the field's type: strings are read as a command line gives them, 1e6 and 1_000_000 are whole."""
  options = _options(hint)
  if value is None or (isinstance(value, str) and value.lower() == 'none'):
    if type(None) in options:
      return None
    if 'none' not in str(value).lower() or str not in options:
      raise UserError(f'{where}={value}: this field needs a value')
  for option in options:
    if dataclasses.is_dataclass(option):
      if isinstance(value, option):
        return value
      if isinstance(value, Mapping):
        return from_dict(option, value, f'{where}.')
      raise UserError(f'{where}={value!r}: set its fields, for instance {where}.{dataclasses.fields(option)[0].name}')
    if option is bool:
      if isinstance(value, bool):
        return value
      if str(value).lower() in ('true', '1', 'yes', 'false', '0', 'no'):
        return str(value).lower() in ('true', '1', 'yes')
      raise UserError(f'{where}={value!r}: it must be true or false')
    if option in (int, float):
      try:
        number = float(value)
        if option is int:
          exact = int(value) if isinstance(value, int | str) and not _is_scientific(value) else int(number)
          if isinstance(value, bool) or exact != number:
            raise ValueError
          return exact
        if isinstance(value, bool):
          raise ValueError
        return number
      except (TypeError, ValueError, OverflowError):
        kind = 'a whole number' if option is int else 'a number'
        raise UserError(f'{where}={value!r}: it must be {kind}') from None
    if option is str:
      if not isinstance(value, str):
        raise UserError(f'{where}={value!r}: it must be text')
      return value
  raise UserError(f'{where}={value!r}: it has the wrong type')


def _is_scientific(value: Any) -> bool:
  return isinstance(value, str) and any(c in value for c in '.eE')
