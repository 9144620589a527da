"""Loss along a training run as a function of its learning-rate schedule: the annealing law and the multi-power law.

Both read columns that `with_schedules` derives from the learning rate at every step. A table names the curve of each row;
the rows of a curve are one run, so give cluster='curve'.
"""

import numpy as np

from analysis.laws.base import Law, coefficient, exponent, floor, power, register, scale
from scaling.errors import UserError, unknown


def with_schedules(
  table, schedules: dict, *, segments: int | None = 256, decay: float = 0.999, curve='curve', step='step'
) -> dict:
  """The table's columns plus those that the curve laws read.

  schedules: {curve: learning rate [steps] from step 0 on}. Row `step` counts from 0 and must lie inside the schedule. Added columns:
  lr_sum [n], the learning rate summed up to and with the row's step; annealing_area [n], the sum over steps of the momentum
  m_i = decay * m_(i-1) + (lr_(i-1) - lr_i); and, [n, segments], the drops of the learning rate before the row: lr_drop (positive when it falls),
  lr_after, and lr_since (learning rate summed from the drop to the row). Neighbouring drops of one sign are merged until about
  `segments` are left, at their mean position (None keeps every one). A step outside its schedule is a UserError.
  """
  from analysis.rows import to_columns

  data = dict(to_columns(table))
  for name in (curve, step):
    if name not in data:
      raise unknown('column', name, data)
  names, steps = np.asarray(data[curve]).astype(str), np.asarray(data[step]).astype(int)
  prepared = {}
  for name in dict.fromkeys(names.tolist()):
    if name not in schedules:
      raise unknown('schedule of curve', name, schedules)
    lr = np.asarray(schedules[name], np.float64)
    longest = steps[names == name].max()
    if longest >= len(lr):
      raise UserError(f'curve {name!r}: step {longest} lies outside its schedule of {len(lr)} steps')
    prepared[name] = _prepare(lr, segments, decay)
  width = max(len(p['drop']) for p in prepared.values())
  n = len(steps)
  columns = {k: np.zeros(n) for k in ('lr_sum', 'annealing_area')}
  columns |= {'lr_drop': np.zeros((n, width)), 'lr_after': np.ones((n, width)), 'lr_since': np.zeros((n, width))}
  for i, (name, at) in enumerate(zip(names.tolist(), steps.tolist(), strict=True)):
    p = prepared[name]
    columns['lr_sum'][i] = p['sum'][at]
    columns['annealing_area'][i] = p['area'][at]
    past = np.searchsorted(p['last'], at, side='right')
    columns['lr_drop'][i, :past] = p['drop'][:past]
    columns['lr_after'][i, :past] = p['after'][:past]
    columns['lr_since'][i, :past] = p['sum'][at] - p['before'][:past]
    if past < len(p['first']) and p['first'][past] <= at:  # part of a merged segment lies before the row
      part = slice(p['first'][past], at + 1)
      drop = p['every_drop'][part]
      total = drop.sum()
      if total != 0:
        columns['lr_drop'][i, past] = total
        columns['lr_after'][i, past] = (drop * p['lr'][part]).sum() / total
        columns['lr_since'][i, past] = p['sum'][at] - (drop * p['every_before'][part]).sum() / total
  return {**data, **columns}


def _prepare(lr: np.ndarray, segments: int | None, decay: float) -> dict:
  total = np.cumsum(lr)
  drop = np.concatenate([[0.0], lr[:-1] - lr[1:]])
  from scipy.signal import lfilter

  momentum = lfilter([1.0], [1.0, -decay], drop)
  before = np.concatenate([[0.0], total[:-1]])
  places = np.flatnonzero(np.abs(drop) > 1e-15 * np.abs(lr).max())
  groups = np.split(places, np.arange(1, len(places)))
  if segments is not None and len(places) > segments:
    # neighbours are merged only within one rise or fall, so that a merged drop has a sign and a place
    ends = np.flatnonzero((np.diff(places) > 1) | (np.diff(np.sign(drop[places])) != 0)) + 1
    runs = np.split(places, ends)
    each = max(1, segments // len(runs))
    groups = [g for run in runs for g in np.array_split(run, min(each, len(run)))]
  sums = np.array([drop[g].sum() for g in groups])
  mean = lambda a: np.array([(drop[g] * a[g]).sum() / drop[g].sum() for g in groups])  # noqa: E731
  return {
    'lr': lr,
    'sum': total,
    'area': np.cumsum(momentum),
    'every_drop': drop,
    'every_before': before,
    'first': np.array([g[0] for g in groups], int),
    'last': np.array([g[-1] for g in groups], int),
    'drop': sums,
    'after': mean(lr),
    'before': mean(before),
  }


annealing = register(
  Law(
    name='annealing',
    inputs=('lr_sum', 'annealing_area'),
    parameters=(
      floor('L_0'),
      coefficient('A', lr_sum='-alpha'),
      exponent('alpha'),
      coefficient('C', (-4.0, 8.0), meaning='loss gained per unit of annealing area'),
    ),
    predict=lambda t, x: t['L_0'] + t['A'] * power(x, 'lr_sum', -t['alpha']) - t['C'] * x['annealing_area'],
    formula='loss = L_0 + A / S_1^alpha - C S_2, S_1 the summed learning rate, S_2 the annealing area',
    latex=r'L(s) = L_0 + A\, S_1^{-\alpha} - C\, S_2',
    source='Tissue et al. 2024, arXiv:2408.11029, abstract; the decay inside S_2 is chosen in `with_schedules`, not fitted',
    signed_inputs=('annealing_area',),
  )
)


def _multi_power(t, x):
  import jax.numpy as jnp

  # 1 - (1 + C lr^-gamma S)^-beta through log1p and expm1, exact for small arguments
  growth = t['C'] * jnp.exp(-t['gamma'] * jnp.log(x['lr_after'])) * x['lr_since']
  gain = -jnp.expm1(-t['beta'] * jnp.log1p(growth))
  return t['L_0'] + t['A'] * power(x, 'lr_sum', -t['alpha']) - t['B'] * (x['lr_drop'] * gain).sum(-1)


multi_power = register(
  Law(
    name='multi-power',
    inputs=('lr_sum', 'lr_drop', 'lr_after', 'lr_since'),
    parameters=(
      floor('L_0'),
      coefficient('A', lr_sum='-alpha'),
      exponent('alpha'),
      scale('B', (3.0, 8.0), 8.0, 'loss gained per unit of learning rate taken away'),
      scale('C', (-1.0, 2.0), 8.0, 'how soon the gain of a drop arrives'),
      exponent('beta', (0.2, 1.0)),
      exponent('gamma', (0.2, 1.0)),
    ),
    predict=_multi_power,
    formula='loss = L_0 + A / S^alpha - B sum_k drop_k (1 - (1 + C lr_k^-gamma S_k)^-beta), S_k the learning rate summed since drop k',
    latex=r'L(t) = L_0 + A\, S_1(t)^{-\alpha} - B \sum_k \Delta\eta_k \left(1 - (1 + C \eta_k^{-\gamma} S_k(t))^{-\beta}\right)',
    source="Luo et al. 2025, arXiv:2503.12811, eq. 1; checked against the authors' code and metrics",
    signed_inputs=('lr_drop', 'lr_since'),
  )
)
