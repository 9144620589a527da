"""Figures by name: each says what it needs, and makes a Plot from a Context."""

import dataclasses
from collections.abc import Callable
from typing import Any

from analysis.context import Context
from analysis.figures.spec import Plot
from scaling.errors import unknown


@dataclasses.dataclass(frozen=True)
class Entry:
  """name, what it needs in one line, the function that makes it; called with a context it gives the matplotlib Figure."""

  name: str
  needs: str
  make: Callable[[Context], Plot]
  default: bool = False

  @property
  def about(self) -> str:
    """The first line of the function's docstring."""
    return (self.make.__doc__ or '').strip().split('\n')[0]

  def plot(self, context: Context) -> Plot:
    """The Plot; raises Unavailable where the records do not allow it."""
    plot = self.make(context)
    plot.name = self.name
    return plot

  def __call__(self, context: Context) -> Any:
    return self.plot(context).draw()


FIGURES: dict[str, Entry] = {}


def figure(name: str, needs: str, default: bool = False) -> Callable:
  """Registers a function as the figure of that name; `default`: drawn in each report that has what it needs."""

  def register(make: Callable[[Context], Plot]) -> Callable[[Context], Plot]:
    FIGURES[name] = Entry(name, needs, make, default)
    return make

  return register


def get(name: str) -> Entry:
  """The figure of that name; an unknown name is a UserError with the nearest."""
  if name not in FIGURES:
    raise unknown('figure', name, FIGURES)
  return FIGURES[name]
