"""Scaling laws as declarations: `get(name)`, `names()`, `register(law)`; see `analysis.laws.base` for how to add one."""

from analysis.laws import constrained, curves, downstream, pretraining  # noqa: F401  (each registers its laws)
from analysis.laws.base import (
  Law,
  Parameter,
  coefficient,
  exponent,
  floor,
  free,
  get,
  log,
  names,
  power,
  register,
  scale,
)

__all__ = [
  'Law', 'Parameter', 'coefficient', 'exponent', 'floor', 'free', 'get', 'log', 'names', 'power', 'register', 'scale',
]  # fmt: skip
