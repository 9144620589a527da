"""Grids of runs: every combination of values over config paths, zips, chains and filters.

runs = grid(
  Run(),
  {
    'model': ['ladder-4k', 'ladder-16k'],               # presets by name, or Model objects
    'data.tokens': [2**18, 2**20],
    'optim.learning_rate': rule,                        # a function of the run so far
    ('seed', 'data.order_seed'): [(0, 7), (1, 8)],      # paths that move together
  },
  where=lambda run: run.data.tokens <= 2**20,
)
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from scaling import config
from scaling.config import Model, Run
from scaling.errors import UserError

Axes = Mapping[str | tuple[str, ...], Any]


def grid(base: Run, axes: Axes, where: Callable[[Run], bool] | None = None) -> list[Run]:
  """All combinations of the axes' values, put into `base`; the last axis varies fastest.

  Args:
    base: what all runs share.
    axes: config path -> list of values; a tuple of paths -> list of tuples of as many values, which move
      together; a path -> one value or a function. A function, as the whole axis or among its values, is called
      with the run that the plain values of its cell give, and functions before it, and returns the value.
      The path 'model' takes preset names.
    where: keeps the runs for which it returns true.

  Returns:
    Runs named after their cell: 'ladder-4k tokens=262144'.

  Raises:
    UserError: an unknown path or preset, an axis with no values, or a value that its field does not take.
  """
  runs = []
  columns = [[(paths, values) for values in choices] for paths, choices in map(_axis, axes.items())]
  labelled = {path for paths, choices in map(_axis, axes.items()) if len(choices) > 1 for path in paths}
  for cell in itertools.product(*columns):
    plain: dict[str, Any] = {}
    derived: dict[str, Callable[[Run], Any]] = {}
    labels = [base.name] if base.name else []
    for paths, values in cell:
      for path, value in zip(paths, values, strict=True):
        if callable(value):
          derived[path] = value
          continue
        plain[path] = preset(value) if path == 'model' else value
        if path in labelled:
          labels.append(_label(path, value))
    run = config.replace(base, plain)
    for path, rule in derived.items():
      value = rule(run)
      run = config.replace(run, {path: preset(value) if path == 'model' else value})
      if path in labelled:
        labels.append(_label(path, value))
    if where is None or where(run):
      runs.append(config.replace(run, {'name': ' '.join(labels)}) if labels else run)
  return runs


def zipped(base: Run, axes: Mapping[str, Sequence[Any]], where: Callable[[Run], bool] | None = None) -> list[Run]:
  """The runs of values taken side by side: the first of each list, the second of each, ...

  Raises UserError if the lists differ in length.
  """
  sizes = {path: len(values) for path, values in axes.items()}
  if len(set(sizes.values())) > 1:
    raise UserError('zipped axes differ in length: ' + ', '.join(f'{path} has {size}' for path, size in sizes.items()))
  return grid(base, {tuple(axes): list(zip(*axes.values(), strict=True))}, where)


def chain(*parts: Iterable[Run]) -> list[Run]:
  """One list of runs after another; a run that was there before (the same but for its name) is left out."""
  seen: dict[str, Run] = {}
  for run in itertools.chain.from_iterable(parts):
    seen.setdefault(config.canonical_json(config.identity(run)), run)
  return list(seen.values())


def where(runs: Iterable[Run], keep: Callable[[Run], bool]) -> list[Run]:
  """The runs that `keep` returns true for."""
  return [run for run in runs if keep(run)]


def preset(value: str | Model) -> Model:
  """A model, from itself or from the name of a preset."""
  if isinstance(value, Model):
    return value
  from scaling.models import presets

  return presets.get(value)


def _axis(item: tuple[str | tuple[str, ...], Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
  """(paths, list of value tuples) of one axis, checked."""
  key, values = item
  if isinstance(values, str) or callable(values) or not isinstance(values, Iterable):
    values = [values] if isinstance(key, str) else [tuple(values)] if isinstance(values, tuple) else [values]
  values = list(values)
  name = key if isinstance(key, str) else ', '.join(key)
  if not values:
    raise UserError(f'axis {name!r} has no values')
  if isinstance(key, str):
    return (key,), [(value,) for value in values]
  for value in values:
    if not isinstance(value, tuple | list) or len(value) != len(key):
      raise UserError(f'axis {name!r} moves {len(key)} paths together, and one of its values is {value!r}')
  return tuple(key), [tuple(value) for value in values]


def _label(path: str, value: Any) -> str:
  if path == 'model' and isinstance(value, str):
    return value
  if isinstance(value, Model):
    return f'{value.layers}x{value.width}'
  if isinstance(value, float):
    value = f'{value:.4g}'
  return f'{path.rpartition(".")[2]}={value}'
