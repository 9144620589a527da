"""What figures and tables are made from: a study's description, its rows and its fits, read from an output folder."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import fit as fitting
from analysis import frontier, table
from scaling.errors import UserError

_COUNTING = {
  'params_non_embedding': 'Non-embedding parameters',
  'params_total': 'Parameters (total)',
  'params_active': 'Active parameters',
}


class Unavailable(UserError):
  """A figure or table that these records do not allow; the message says what is missing."""


@dataclasses.dataclass
class Context:
  """study: as in study.json ({} for a plain table). frame: one row per evaluation. fits: as in fits.json."""

  study: dict[str, Any]
  frame: pd.DataFrame
  fits: list[fitting.Fit]
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def clean(self) -> pd.DataFrame:
    """Rows with finite, positive loss and tokens, without those of diverged runs; `held_out` is always there."""
    frame = self.frame
    self.need_columns('params', 'tokens', 'loss')
    keep = (frame['tokens'] > 0) & (frame['loss'] > 0) & np.isfinite(frame['loss']) & (frame['params'] > 0)
    if 'diverged' in frame.columns:
      keep &= ~frame['diverged'].fillna(False).astype(bool)
    frame = frame[keep].copy()
    held = frame['held_out'].fillna(False).astype(bool) if 'held_out' in frame.columns else False
    frame['held_out'] = held
    if 'name' not in frame.columns:
      frame['name'] = frame['run_id'].astype(str) if 'run_id' in frame.columns else [f'row {i}' for i in frame.index]
    return frame

  @functools.cached_property
  def finals(self) -> pd.DataFrame:
    """The last row of each run."""
    return table.finals(self.clean)

  @property
  def fitted(self) -> pd.DataFrame:
    """Final rows that are not held out."""
    return self.finals[~self.finals['held_out']]

  @property
  def held_out(self) -> pd.DataFrame:
    return self.finals[self.finals['held_out']]

  @functools.cached_property
  def joint(self) -> fitting.Fit:
    """The first fit of loss against params and tokens."""
    for one in self.fits:
      if set(one.declared.inputs) == {'params', 'tokens'} and one.declared.outcome == 'loss':
        return one
    raise Unavailable('a fit of loss against params and tokens: scaling fit DIR --law=chinchilla --out=DIR/fits.json')

  @functools.cached_property
  def approaches(self) -> tuple[list[frontier.Approach], list[str]]:
    """The three approaches to compute-optimal sizes, and why one is missing."""
    try:
      joint = self.joint
    except Unavailable:
      joint = None
    return frontier.approaches(self.clean, joint)

  def approach(self, name: str) -> frontier.Approach:
    """One of envelope, isoflop, parametric; Unavailable says why not."""
    found, missing = self.approaches
    for one in found:
      if one.name == name:
        return one
    raise Unavailable(next((m.split(': ', 1)[1] for m in missing if m.startswith(name)), f'approach {name}'))

  @property
  def predictive(self) -> list[fitting.Fit]:
    """Fits of loss that can predict any run: those of several inputs, or of one where there is no other."""
    found = [f for f in self.fits if f.declared.outcome == 'loss' and set(f.declared.inputs) <= set(self.frame.columns)]
    return [f for f in found if len(f.declared.inputs) > 1] or found

  def fit_of(self, *names: str) -> fitting.Fit:
    """The first fit of one of these laws."""
    for name in names:
      for one in self.fits:
        if one.law == name:
          return one
    raise Unavailable(f'a fit of the law {" or ".join(names)}: scaling fit DIR --law={names[0]} --out=DIR/fits.json')

  def need_columns(self, *names: str) -> None:
    """Raises Unavailable where the rows lack a column."""
    missing = [n for n in names if n not in self.frame.columns]
    if missing:
      raise Unavailable(f'column {", ".join(missing)} in the rows')

  def need_curves(self) -> pd.DataFrame:
    """Rows of training curves; Unavailable where each run has one row."""
    self.need_columns('run_id')
    if self.clean.groupby('run_id').size().max() < 3:
      raise Unavailable('training curves: several rows per run_id')
    return self.clean

  @property
  def params_label(self) -> str:
    return _COUNTING.get(self.study.get('counting', ''), 'Parameters')

  @property
  def loss_label(self) -> str:
    unit = 'nats per token'
    if 'tokenizer' in self.frame.columns and (self.frame['tokenizer'] == 'bytes').all():
      unit = 'nats per byte'
    return f'Validation loss ({unit})'

  @property
  def baselines(self) -> list[dict[str, Any]]:
    return sorted(self.study.get('baselines') or [], key=lambda b: -b['loss'])


def load(out_dir: str | Path) -> Context:
  """The context of a study's output folder, or of any table of runs (then without a study and fits)."""
  path = Path(out_dir)
  study: dict[str, Any] = {}
  if (path / 'study.json').exists():
    try:
      study = json.loads((path / 'study.json').read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
      raise UserError(
        f'{path / "study.json"} is not JSON (line {error.lineno}): repeat `scaling run` to write it again'
      ) from None
  fits = fitting.load(path / 'fits.json') if (path / 'fits.json').exists() else []
  return Context(study, table.read(path), fits)
