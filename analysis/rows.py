"""Which rows of a table a law can be fitted to: each bad row is named; it is dropped only where that was asked."""

import dataclasses
import math

import numpy as np

from scaling.errors import UserError, unknown

LARGEST_LOSS = 13.0  # nats per token: log of a vocabulary of 440,000, larger than any in use
CHECKS = ('duplicates', 'units', 'one-value')


@dataclasses.dataclass(frozen=True)
class Rows:
  """Columns [n] of the rows used, the outcome y [n], weights [n], cluster codes [n], and what was left out and why."""

  inputs: dict
  outcome: np.ndarray
  weights: np.ndarray
  clusters: np.ndarray
  cluster_names: list
  index: np.ndarray
  dropped: list[dict]
  warnings: list[str]

  @property
  def n(self) -> int:
    return len(self.outcome)

  @property
  def n_clusters(self) -> int:
    return len(self.cluster_names)


def named(rows) -> str:
  """'row 3' or 'rows 3, 7, 9 and 12 more', as the table numbers them."""
  rows = [str(r) for r in rows]
  shown = ', '.join(rows[:5]) + (f' and {len(rows) - 5} more' if len(rows) > 5 else '')
  return ('row ' if len(rows) == 1 else 'rows ') + shown


def to_columns(table) -> dict:
  """A dict of arrays from a pandas frame, an arrow table, a dict of columns or a list of records."""
  if hasattr(table, 'to_pandas'):
    table = table.to_pandas()
  if hasattr(table, 'columns') and hasattr(table, 'to_numpy'):
    return {str(c): np.asarray(table[c]) for c in table.columns}
  if isinstance(table, dict):
    columns = {k: np.atleast_1d(np.asarray(v)) for k, v in table.items()}
    n = max((len(v) for v in columns.values()), default=0)
    return {k: np.repeat(v, n, axis=0) if len(v) == 1 else v for k, v in columns.items()}
  records = list(table)
  return {k: np.array([r.get(k, math.nan) for r in records]) for k in dict.fromkeys(k for r in records for k in r)}


def _numbers(values: np.ndarray, column: str) -> np.ndarray:
  try:
    return np.asarray(values, np.float64)
  except (TypeError, ValueError):
    raise UserError(f'column {column!r} holds {values[0]!r}: needs numbers') from None


def gather(
  law, table, *, space: str, n_free: int, columns=None, outcome=None, weights=None, cluster=None, drop=False, accept=()
) -> Rows:
  """The rows of `table` for `law`; every problem is a UserError naming the rows, unless `drop` leaves them out.

  columns maps a law's name for a column to the table's; accept lets named checks pass: 'duplicates', 'units', 'one-value'.
  """
  for check in accept:
    if check not in CHECKS:
      raise unknown('check to accept', check, CHECKS)
  index = np.asarray(table.index) if hasattr(table, 'index') and hasattr(table, 'columns') else None
  data = to_columns(table)
  if law.prepare is not None:
    data = law.prepare(data)
  data = {**data, **{ours: data[theirs] for ours, theirs in (columns or {}).items() if theirs in data}}
  for ours, theirs in (columns or {}).items():
    if ours not in data:
      raise unknown(f'column for {ours!r}', theirs, data)
  outcome = outcome or law.outcome
  wanted = (*law.inputs, outcome, *([weights] if weights else []), *([cluster] if cluster else []))
  for name in wanted:
    if name not in data:
      raise unknown('column', name, data)
  n_all = len(data[outcome])
  if not n_all:
    raise UserError(
      f'the table has no rows: {law.name!r} needs {", ".join((*law.inputs, outcome))} of at least one run'
    )
  index = np.arange(n_all) if index is None or len(index) != n_all else index
  inputs = {name: _numbers(data[name], name) for name in law.inputs}
  y = _numbers(data[outcome], outcome)
  w = np.ones(n_all) if weights is None else _numbers(data[weights], weights)
  labels = np.asarray(data[cluster]) if cluster else np.arange(n_all)

  keep = np.ones(n_all, bool)
  dropped, warnings = [], []

  def leave(bad, reason: str, remedy: str) -> None:
    bad = np.asarray(bad) & keep
    if not bad.any():
      return
    if not drop:
      raise UserError(f'{named(index[bad])}: {reason}; {remedy}')
    dropped.extend({'row': _plain(i), 'reason': reason} for i in index[bad])
    keep[bad] = False

  asked = 'correct them, or ask to drop such rows'
  for name, column in {**inputs, outcome: y, **({weights: w} if weights else {})}.items():
    finite = np.isfinite(column).reshape(n_all, -1).all(1)
    leave(~finite, f'{name} is not a finite number', asked)
  for name, column in inputs.items():
    if name not in law.signed_inputs:
      leave(~(column > 0).reshape(n_all, -1).all(1), f'{name} is zero or negative', asked)
  if space == 'log':
    leave(~(y > 0), f'{outcome} is zero or negative, which log space cannot hold', asked)
  leave(w < 0, 'the weight is negative', asked)
  if outcome == 'loss' and 'units' not in accept:
    leave(
      y > LARGEST_LOSS,
      f'loss above {LARGEST_LOSS:g} nats per token is worse than guessing from any vocabulary in use',
      "check its units, ask to drop such rows, or accept=('units',)",
    )
  if {'params', 'tokens'} <= set(inputs) and 'units' not in accept and keep.any():
    small = inputs['tokens'] < 1e-3 * inputs['params']
    if (small & keep).sum() > 0.5 * keep.sum():
      raise UserError(
        f'{named(index[small & keep])}: fewer than one token per 1,000 parameters; '
        "tokens look as if given in millions or billions: give plain counts, or accept=('units',)"
      )
  if 'duplicates' not in accept:
    keys = list(zip(*(_key(c) for c in inputs.values()), _key(y), *([labels.tolist()] if cluster else []), strict=True))
    seen, again = {}, np.zeros(n_all, bool)
    for i, key in enumerate(keys):
      if keep[i]:
        again[i] = key in seen
        seen.setdefault(key, i)
    first = [index[seen[keys[i]]] for i in np.flatnonzero(again)[:5]]
    leave(
      again,
      f'the same inputs and outcome as {named(first)}' if again.any() else '',
      "a run counted twice? ask to drop the repeats, or accept=('duplicates',)",
    )

  n = int(keep.sum())
  y, w, labels = y[keep], w[keep], labels[keep]
  inputs = {k: v[keep] for k, v in inputs.items()}
  if n < max(n_free, 1):
    raise UserError(
      f'{n} usable points for {n_free} free parameters of {law.name!r}: give more rows, or fix or tie parameters'
    )
  if n > 1 and np.ptp(y) == 0:
    raise UserError(f'{outcome} is {y[0]:g} in all {n} rows: a law needs outcomes that differ')
  if 'one-value' not in accept:
    for name, column in inputs.items():
      if column.ndim == 1 and n > 1 and np.ptp(column) == 0:
        raise UserError(
          f'{name} is {column[0]:g} in all {n} rows: {law.name!r} cannot tell its effect from a constant; '
          "use a law without it, fix its parameters, or accept=('one-value',)"
        )
  if n <= n_free + 2:
    warnings.append(f'{n} points for {n_free} parameters: intervals say little')
  names, codes = np.unique(labels.astype(str) if labels.dtype == object else labels, return_inverse=True)
  return Rows(inputs, y, w, codes, [_plain(v) for v in names], index[keep], dropped, warnings)


def _key(column: np.ndarray) -> list:
  return column.tolist() if column.ndim == 1 else [c.tobytes() for c in column]


def _plain(value):
  return value.item() if hasattr(value, 'item') else value
