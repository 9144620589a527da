"""What a scaling law is: named inputs, named parameters and one formula; and the table of known laws.

A law is a declaration. A user adds one in ten lines:

  from analysis import laws
  from analysis.laws import coefficient, exponent, floor, power

  laws.register(laws.Law(
    name='my-law',
    inputs=('params',),
    parameters=(floor('E'), coefficient('A', params='-alpha'), exponent('alpha')),
    predict=lambda t, x: t['E'] + t['A'] * power(x, 'params', -t['alpha']),
    formula='loss = E + A / params^alpha', latex=r'L = E + A N^{-\\alpha}', source='this paper, eq. 1'))

`predict(theta, inputs)` is written in jax.numpy over a dict of scalars and a dict of columns [n]; it must be smooth.
The parameter's kind says how the solver moves it: on a log scale, relative to the data's centre, between bounds.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

from scaling.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One parameter of a law.

  transform: 'log' (positive, moved multiplicatively) or 'linear'.
  start: range in which starts are drawn, in internal units: for 'log' the natural log of the value (or of the term it
    scales, see centre), for 'linear' the value itself; multiplied by (linear) or offset by the log of (log) the outcome's scale when `of_outcome`.
  bounds: what the value may be, in natural units.
  centre: columns that the parameter's power multiplies, with their exponents: ('params', '-alpha') says the parameter
    appears as value * params^-alpha, so the solver moves the log of that product at the data's geometric mean;
    '-2*eta' doubles it, and a number is a constant exponent.
  spread: internal units beyond the start range that the search may reach before it is called unbounded ('log' only).
  """

  name: str
  transform: str = 'linear'
  start: tuple[float, float] = (0.0, 1.0)
  bounds: tuple[float, float] = (-math.inf, math.inf)
  of_outcome: bool = False
  centre: tuple[tuple[str, str | float], ...] = ()
  spread: float = 30.0
  meaning: str = ''

  def __post_init__(self):
    if self.transform not in ('log', 'linear'):
      raise UserError(f"parameter {self.name!r}: transform must be 'log' or 'linear', not {self.transform!r}")


def floor(name: str, meaning: str = 'irreducible loss') -> Parameter:
  """An additive floor of the outcome: linear, not below 0, started between 0 and the typical outcome."""
  return Parameter(name, 'linear', (0.0, 0.9), (0.0, math.inf), of_outcome=True, meaning=meaning)


def coefficient(name: str, start=(-4.0, 0.0), meaning: str = 'size of a term', **exponents: str | float) -> Parameter:
  """A positive factor of a term in units of the outcome; `params='-alpha'` says the term is value * params^-alpha."""
  return Parameter(name, 'log', start, (0.0, math.inf), True, tuple(exponents.items()), meaning=meaning)


def scale(name: str, start=(-2.0, 2.0), spread=30.0, meaning: str = 'scale of an input', **columns: float) -> Parameter:
  """A positive factor not in units of the outcome; `params=-1` says it appears as value / params."""
  return Parameter(name, 'log', start, (0.0, math.inf), False, tuple(columns.items()), spread, meaning)


def exponent(name: str, start=(0.05, 1.0), bounds=(0.0, math.inf), meaning: str = 'exponent') -> Parameter:
  """An exponent: linear, not negative unless said."""
  return Parameter(name, 'linear', start, bounds, meaning=meaning)


def free(name: str, start, bounds=(-math.inf, math.inf), meaning: str = '') -> Parameter:
  """A plain number, started in the given range."""
  return Parameter(name, 'linear', start, bounds, meaning=meaning)


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
  """A law: see the module's docstring. `outcome` is the column it predicts, `space` the residual space it is usually fitted in.

  exponents: theta -> {'a': exponent of compute-optimal params, 'b': of tokens}, where a closed form exists.
  tied: pairs (parameter, follows) held equal. prepare: frame -> columns the formula needs beyond the frame's own.
  constants: names and values of choices that are part of the law and not fitted.
  """

  name: str
  inputs: tuple[str, ...]
  parameters: tuple[Parameter, ...]
  predict: Callable
  formula: str
  latex: str
  source: str
  outcome: str = 'loss'
  space: str = 'log'
  exponents: Callable | None = None
  tied: tuple[tuple[str, str], ...] = ()
  prepare: Callable | None = None
  signed_inputs: tuple[str, ...] = ()

  def __post_init__(self):
    known = [p.name for p in self.parameters]
    if len(set(known)) != len(known):
      raise UserError(f'law {self.name!r}: a parameter is named twice in {known}')
    for parameter in self.parameters:
      for column, power_of in parameter.centre:
        if column not in self.inputs:
          raise unknown(f'input of parameter {parameter.name!r} in law {self.name!r}', column, self.inputs)
        name = times(power_of)[1]
        if name is not None and name not in known:
          raise unknown(f'exponent of parameter {parameter.name!r} in law {self.name!r}', power_of, known)
    for name, follows in self.tied:
      for one in (name, follows):
        if one not in known:
          raise unknown(f'tied parameter of law {self.name!r}', one, known)

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the parameters, in order."""
    return tuple(p.name for p in self.parameters)

  def index(self, name: str) -> int:
    """Position of a parameter; an unknown name is a UserError."""
    if name not in self.names:
      raise unknown(f'parameter of law {self.name!r}', name, self.names)
    return self.names.index(name)


def times(exponent: str | float) -> tuple[float, str | None]:
  """(factor, name) of an exponent such as '-alpha' or '-2*eta'; (value, None) of a number."""
  if not isinstance(exponent, str):
    return float(exponent), None
  factor, _, name = exponent.rpartition('*')
  sign = -1.0 if name.startswith('-') else 1.0
  return sign * float(factor or 1.0), name.lstrip('+-')


def log(x: Mapping, column: str):
  """Natural log of an input column; the solver hands it precomputed."""
  key = f'log {column}'
  if key in x:
    return x[key]
  import jax.numpy as jnp

  return jnp.log(jnp.asarray(x[column]))


def power(x: Mapping, column: str, exponent):
  """Input column to a fitted power, as exp(exponent * log column)."""
  import jax.numpy as jnp

  return jnp.exp(exponent * log(x, column))


_LAWS: dict[str, Law] = {}


def register(law: Law) -> Law:
  """Makes a law known by its name to the command line and to `get`; a name already taken is a UserError."""
  if law.name in _LAWS:
    raise UserError(f'law {law.name!r} is already registered: choose another name')
  _LAWS[law.name] = law
  return law


def get(law: str | Law) -> Law:
  """The law of that name (a Law passes through)."""
  if isinstance(law, Law):
    return law
  if law not in _LAWS:
    raise unknown('law', law, _LAWS)
  return _LAWS[law]


def names() -> list[str]:
  """Names of all known laws, sorted."""
  return sorted(_LAWS)
