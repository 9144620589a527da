"""Loss of pre-training against parameters and tokens: single power laws, Kaplan, Chinchilla and its variants, Farseer."""

import dataclasses

from analysis.laws.base import Law, coefficient, exponent, floor, free, log, power, register, scale


def _single(column: str, symbol: str, with_floor: bool) -> Law:
  tail = f'A / {column}^alpha'
  return Law(
    name=f'power-{column}' if with_floor else f'pure-power-{column}',
    inputs=(column,),
    parameters=((floor('E'),) if with_floor else ()) + (coefficient('A', **{column: '-alpha'}), exponent('alpha')),
    predict=lambda t, x: (t['E'] if with_floor else 0.0) + t['A'] * power(x, column, -t['alpha']),
    formula=f'loss = E + {tail}' if with_floor else f'loss = {tail}',
    latex=rf'L = E + A\,{symbol}^{{-\alpha}}' if with_floor else rf'L = A\,{symbol}^{{-\alpha}}',
    source='Hestness et al. 2017, arXiv:1712.00409; Henighan et al. 2020, arXiv:2010.14701, eq. 1.1'
    if with_floor
    else 'Kaplan et al. 2020, arXiv:2001.08361, eqs. 1.1-1.3',
  )


for _column, _symbol in (('params', 'N'), ('tokens', 'D'), ('flops', 'C')):
  register(_single(_column, _symbol, True))
  register(_single(_column, _symbol, False))


def _kaplan(t, x):
  import jax.numpy as jnp

  # [(Nc/N)^(aN/aD) + Dc/D]^aD with the sum of exponentials taken inside a log, which keeps small terms exact
  first = (t['alpha_N'] / t['alpha_D']) * (jnp.log(t['N_c']) - log(x, 'params'))
  second = jnp.log(t['D_c']) - log(x, 'tokens')
  return jnp.exp(t['alpha_D'] * jnp.logaddexp(first, second))


kaplan = register(
  Law(
    name='kaplan',
    inputs=('params', 'tokens'),
    parameters=(
      scale('N_c', (2.0, 15.0), params=-1, meaning='parameters at which the model-limited loss is 1 nat'),
      scale('D_c', (2.0, 15.0), tokens=-1, meaning='tokens at which the data-limited loss is 1 nat'),
      exponent('alpha_N', (0.03, 0.3), (1e-4, 10.0)),
      exponent('alpha_D', (0.03, 0.3), (1e-4, 10.0)),
    ),
    predict=_kaplan,
    formula='loss = [(N_c / params)^(alpha_N / alpha_D) + D_c / tokens]^alpha_D',
    latex=r'L = \left[\left(\frac{N_c}{N}\right)^{\alpha_N/\alpha_D} + \frac{D_c}{D}\right]^{\alpha_D}',
    source='Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5',
    # with D = C/(6N) the bracket is least where N^(1 + alpha_N/alpha_D) is proportional to C
    exponents=lambda t: {
      'a': t['alpha_D'] / (t['alpha_N'] + t['alpha_D']),
      'b': t['alpha_N'] / (t['alpha_N'] + t['alpha_D']),
    },
  )
)

chinchilla = register(
  Law(
    name='chinchilla',
    inputs=('params', 'tokens'),
    parameters=(
      floor('E'),
      coefficient('A', params='-alpha'),
      exponent('alpha'),
      coefficient('B', tokens='-beta'),
      exponent('beta'),
    ),
    predict=lambda t, x: t['E'] + t['A'] * power(x, 'params', -t['alpha']) + t['B'] * power(x, 'tokens', -t['beta']),
    formula='loss = E + A / params^alpha + B / tokens^beta',
    latex=r'L = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}}',
    source='Hoffmann et al. 2022, arXiv:2203.15556, eq. 2',
    exponents=lambda t: {
      'a': t['beta'] / (t['alpha'] + t['beta']),
      'b': t['alpha'] / (t['alpha'] + t['beta']),
    },
  )
)

chinchilla_tied = register(
  dataclasses.replace(
    chinchilla,
    name='chinchilla-tied',
    tied=(('beta', 'alpha'),),
    formula='loss = E + A / params^alpha + B / tokens^alpha',
    latex=r'L = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\alpha}}',
    source='Hoffmann et al. 2022, arXiv:2203.15556, eq. 2 with alpha = beta, as Muennighoff et al. 2023, arXiv:2305.16264, use it',
  )
)

gemstones = register(
  Law(
    name='width-depth-params',
    inputs=('width', 'depth', 'params', 'tokens'),
    parameters=(
      floor('E'),
      coefficient('A', width='-alpha'),
      exponent('alpha'),
      coefficient('B', depth='-beta'),
      exponent('beta'),
      coefficient('C', params='-gamma'),
      exponent('gamma'),
      coefficient('D', tokens='-delta'),
      exponent('delta'),
    ),
    predict=lambda t, x: (
      t['E']
      + t['A'] * power(x, 'width', -t['alpha'])
      + t['B'] * power(x, 'depth', -t['beta'])
      + t['C'] * power(x, 'params', -t['gamma'])
      + t['D'] * power(x, 'tokens', -t['delta'])
    ),
    formula='loss = E + A / width^alpha + B / depth^beta + C / params^gamma + D / tokens^delta',
    latex=r'L = E + \frac{A}{w^{\alpha}} + \frac{B}{d^{\beta}} + \frac{C}{N^{\gamma}} + \frac{D}{T^{\delta}}',
    source='McLeish et al. 2025, arXiv:2502.06857, approach 3 with width and depth',
  )
)

width_depth = register(
  dataclasses.replace(
    gemstones,
    name='width-depth',
    inputs=('width', 'depth', 'tokens'),
    parameters=tuple(p for p in gemstones.parameters if p.name not in ('C', 'gamma')),
    predict=lambda t, x: (
      t['E']
      + t['A'] * power(x, 'width', -t['alpha'])
      + t['B'] * power(x, 'depth', -t['beta'])
      + t['D'] * power(x, 'tokens', -t['delta'])
    ),
    formula='loss = E + A / width^alpha + B / depth^beta + D / tokens^delta',
    latex=r'L = E + \frac{A}{w^{\alpha}} + \frac{B}{d^{\beta}} + \frac{D}{T^{\delta}}',
  )
)

FARSEER_PARAMS = 1e9  # where the floor, the token term and its exponent are stated


def _bend(log_ratio, slope):
  """(ratio^slope - 1) / slope, which is log ratio where the slope is 0; smooth there, with its derivatives."""
  import jax.numpy as jnp

  z = slope * log_ratio
  small = jnp.abs(z) < 1e-3
  safe = jnp.where(small, 1.0, slope)
  series = log_ratio * (1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5))))
  return jnp.where(small, series, jnp.expm1(jnp.where(small, 0.0, z)) / safe)


def _farseer(t, x):
  import jax.numpy as jnp

  log_ratio = log(x, 'params') - jnp.log(FARSEER_PARAMS)
  floor_n = t['F'] * jnp.exp(-t['s'] * _bend(log_ratio, t['q']))
  exponent_n = t['beta'] * jnp.exp(-t['A'] * _bend(log_ratio, t['a']))
  return floor_n + t['K'] * jnp.exp(-t['B'] * _bend(log_ratio, t['b']) - exponent_n * log(x, 'tokens'))


farseer = register(
  Law(
    name='farseer',
    inputs=('params', 'tokens'),
    parameters=(
      coefficient('F', (-0.5, 0.0), 'loss with endless tokens at 1e9 params'),
      free('s', (0.0, 0.15), meaning='how fast that loss falls with log params'),
      free('q', (-0.3, 0.3), (-2.0, 2.0), meaning='how that fall changes with params; 0: a power law'),
      coefficient('K', (-3.0, -0.5), 'size of the token term at 1e9 params', tokens='-beta'),
      free('B', (-0.3, 1.5), meaning='how fast that size falls with log params'),
      free('b', (-0.3, 0.3), (-2.0, 2.0), meaning='how that fall changes with params; 0: a power law'),
      exponent('beta', (0.1, 0.6), meaning='exponent of tokens at 1e9 params'),
      free('A', (-0.1, 0.2), meaning='how fast the exponent falls with log params'),
      free('a', (-0.3, 0.3), (-2.0, 2.0), meaning='how that fall changes with params'),
    ),
    predict=_farseer,
    formula='loss = F exp(-s h_q) + K exp(-B h_b) tokens^-(beta exp(-A h_a)), h_p = ((params / 1e9)^p - 1) / p',
    latex=r'L = F e^{-s h_q} + K e^{-B h_b} D^{-\beta e^{-A h_a}},\; h_p = \frac{(N / 10^9)^p - 1}{p}',
    # Published as exp(s N^q + S) + exp(B N^b + Q) D^-exp(A N^a + E). That has the same curves, but its factors run off to
    # infinity as an exponent nears 0, and its terms swap signs there; stated at 1e9 parameters they do not.
    source='Li et al. 2025, arXiv:2506.10972 (Farseer), its nine parameters stated at 1e9 params',
  )
)
