"""Loss of pre-training with a further dial: repeated data, over-training, precision, vocabulary, experts, smooth breaks."""

from analysis.laws.base import Law, Parameter, coefficient, exponent, floor, free, log, power, register, scale

_CHINCHILLA = (
  floor('E'),
  coefficient('A', params='-alpha'),
  exponent('alpha'),
  coefficient('B', tokens='-beta'),
  exponent('beta'),
)


def effective_repeats(repeats, half_life):
  """Value of `repeats` passes beyond the first, in passes of fresh data: half_life * (1 - exp(-repeats / half_life))."""
  import jax.numpy as jnp

  # expm1: for large half-lives 1 - exp(-x) loses all its digits, and spurious optima appear
  return -half_life * jnp.expm1(-repeats / half_life)


def _data_constrained(t, x):
  import jax.numpy as jnp

  unique = jnp.minimum(x['unique_tokens'], x['tokens'])
  log_unique = jnp.minimum(log(x, 'unique_tokens'), log(x, 'tokens'))
  repeats = jnp.maximum(x['tokens'] / unique - 1.0, 0.0)
  # parameters that the unique tokens can use: alpha A / N^alpha = beta B / U^beta
  best = (jnp.log(t['alpha'] * t['A']) - jnp.log(t['beta'] * t['B']) + t['beta'] * log_unique) / t['alpha']
  log_useful = jnp.minimum(best, log(x, 'params'))
  excess = jnp.maximum(jnp.exp(log(x, 'params') - log_useful) - 1.0, 0.0)
  log_tokens = log_unique + jnp.log1p(effective_repeats(repeats, t['R_D']))
  log_params = log_useful + jnp.log1p(effective_repeats(excess, t['R_N']))
  return t['E'] + t['A'] * jnp.exp(-t['alpha'] * log_params) + t['B'] * jnp.exp(-t['beta'] * log_tokens)


data_constrained = register(
  Law(
    name='data-constrained',
    inputs=('params', 'tokens', 'unique_tokens'),
    parameters=(
      *_CHINCHILLA,
      scale('R_D', (-1.0, 5.0), 12.0, 'passes over which repeated tokens lose their worth'),
      scale('R_N', (-1.0, 5.0), 12.0, 'multiples over which excess parameters lose their worth'),
    ),
    predict=_data_constrained,
    formula="loss = E + A / N'^alpha + B / D'^beta, D' = U (1 + R_D (1 - exp(-(tokens/U - 1) / R_D))), N' likewise from the "
    'parameters that U unique tokens can use',
    latex=r"L = E + \frac{A}{N'^{\alpha}} + \frac{B}{D'^{\beta}},\; D' = U_D + U_D R_D^* (1 - e^{-R_D / R_D^*}),\; "
    r"N' = U_N + U_N R_N^* (1 - e^{-R_N / R_N^*})",
    source='Muennighoff et al. 2023, arXiv:2305.16264, eqs. 5-6; checked against their published fit',
  )
)


def _over_training(t, x):
  import jax.numpy as jnp

  log_flops = jnp.log(6.0) + log(x, 'params') + log(x, 'tokens')
  log_ratio = log(x, 'tokens') - log(x, 'params')
  eta = t['eta']
  return t['E'] + t['a'] * jnp.exp(eta * (log_ratio - log_flops)) + t['b'] * jnp.exp(-eta * (log_ratio + log_flops))


over_training = register(
  Law(
    name='over-training',
    inputs=('params', 'tokens'),
    parameters=(
      floor('E'),
      coefficient('a', params='-2*eta'),
      coefficient('b', tokens='-2*eta'),
      exponent('eta', (0.03, 0.5)),
    ),
    predict=_over_training,
    formula='loss = E + (a M^eta + b M^-eta) C^-eta, M = tokens / params, C = 6 params tokens',
    latex=r'L = E + \left(a M^{\eta} + b M^{-\eta}\right) C^{-\eta}',
    source="Gadre et al. 2024, arXiv:2403.08540, eq. 4; checked against the authors' code",
    exponents=lambda t: {'a': 0.5 + 0 * t['eta'], 'b': 0.5 + 0 * t['eta']},
  )
)


def _effective_params(t, x, parts):
  import jax.numpy as jnp

  value = log(x, 'params')
  for part in parts:
    value = value + jnp.log(-jnp.expm1(-x[f'{part}_bits'] / t[f'gamma_{part}']))
  return value


def _precision(parts):
  def predict(t, x):
    import jax.numpy as jnp

    first = t['A'] * jnp.exp(-t['alpha'] * _effective_params(t, x, parts))
    return t['E'] + first + t['B'] * power(x, 'tokens', -t['beta'])

  return predict


for _name, _parts in (('precision-weights', ('weight',)), ('precision', ('weight', 'activation', 'kv'))):
  register(
    Law(
      name=_name,
      inputs=('params', 'tokens', *(f'{p}_bits' for p in _parts)),
      parameters=(
        *_CHINCHILLA,
        *(scale(f'gamma_{p}', (-1.0, 2.0), 6.0, f'bits over which {p} precision saturates') for p in _parts),
      ),
      predict=_precision(_parts),
      formula='loss = E + A / N_eff^alpha + B / tokens^beta, N_eff = params * prod(1 - exp(-bits / gamma))',
      latex=r'L = E + A\Big[N \textstyle\prod_x (1 - e^{-P_x/\gamma_x})\Big]^{-\alpha} + B D^{-\beta}',
      source='Kumar et al. 2024, arXiv:2411.04330, eq. 3 and the product over weights, activations and KV cache',
    )
  )


def _post_training_quantisation(t, x):
  import jax.numpy as jnp

  return (
    t['C_T']
    * power(x, 'tokens', t['gamma_D'])
    * power(x, 'params', -t['gamma_N'])
    * jnp.exp(-x['post_bits'] / t['gamma_post'])
  )


register(
  Law(
    name='post-training-quantisation',
    inputs=('params', 'tokens', 'post_bits'),
    parameters=(
      Parameter('C_T', 'log', (-4.0, 8.0), (0.0, float('inf')), True, (('tokens', 'gamma_D'), ('params', '-gamma_N'))),
      exponent('gamma_D'),
      exponent('gamma_N'),
      scale('gamma_post', (-1.5, 1.5), 6.0, 'bits over which the degradation falls by e'),
    ),
    predict=_post_training_quantisation,
    formula='loss_increase = C_T tokens^gamma_D / params^gamma_N exp(-post_bits / gamma_post)',
    latex=r'\delta_{PTQ} = C_T \frac{D^{\gamma_D}}{N^{\gamma_N}} e^{-P_{post}/\gamma_{post}}',
    source='Kumar et al. 2024, arXiv:2411.04330, eq. 2',
    outcome='loss_increase',
  )
)

vocabulary = register(
  Law(
    name='vocabulary',
    inputs=('params_non_vocabulary', 'params_vocabulary', 'tokens'),
    parameters=(
      free('E', (0.0, 8.0), (0.0, float('inf')), meaning='gain over the unigram model at infinite scale'),
      coefficient('A_1', (-3.0, 2.0), params_non_vocabulary='-alpha_1'),
      exponent('alpha_1'),
      coefficient('A_2', (-3.0, 2.0), params_vocabulary='-alpha_2'),
      exponent('alpha_2'),
      coefficient('B', (-3.0, 2.0), tokens='-beta'),
      exponent('beta'),
    ),
    predict=lambda t, x: (
      -t['E']
      + t['A_1'] * power(x, 'params_non_vocabulary', -t['alpha_1'])
      + t['A_2'] * power(x, 'params_vocabulary', -t['alpha_2'])
      + t['B'] * power(x, 'tokens', -t['beta'])
    ),
    formula='loss_over_unigram = -E + A_1 / params_non_vocabulary^alpha_1 + A_2 / params_vocabulary^alpha_2 + B / tokens^beta, alpha_1 = beta',
    latex=r'L_u = -E + \frac{A_1}{N_{nv}^{\alpha_1}} + \frac{A_2}{N_v^{\alpha_2}} + \frac{B}{D^{\beta}}',
    source="Tao et al. 2024, arXiv:2407.13623, approach 3; alpha_1 = beta as in the authors' code",
    outcome='loss_over_unigram',
    space='raw',
    tied=(('alpha_1', 'beta'),),
  )
)

granularity = register(
  Law(
    name='moe-granularity',
    inputs=('params', 'tokens', 'granularity'),
    parameters=(
      floor('c'),
      coefficient('a', params='-alpha'),
      coefficient('g', params='-alpha', granularity='-gamma'),
      exponent('gamma'),
      exponent('alpha'),
      coefficient('b', tokens='-beta'),
      exponent('beta'),
    ),
    predict=lambda t, x: (
      t['c']
      + (t['a'] + t['g'] * power(x, 'granularity', -t['gamma'])) * power(x, 'params', -t['alpha'])
      + t['b'] * power(x, 'tokens', -t['beta'])
    ),
    formula='loss = c + (g / granularity^gamma + a) / params^alpha + b / tokens^beta',
    latex=r'L = c + \left(\frac{g}{G^{\gamma}} + a\right)\frac{1}{N^{\alpha}} + \frac{b}{D^{\beta}}',
    source='Krajewski et al. 2024, arXiv:2402.07871, eq. 9',
  )
)


def saturated_experts(experts, start, largest):
  """Expert count with the saturation of Clark et al.: near `start` for one expert, at most `largest`."""
  return 1.0 / (1.0 / (experts - 1.0 + 1.0 / (1.0 / start - 1.0 / largest)) + 1.0 / largest)


def _routed(t, x):
  import jax.numpy as jnp

  log_n = log(x, 'params')
  log_e = jnp.log(saturated_experts(x['experts'], t['E_start'], t['E_start'] * (1.0 + t['E_range'])))
  return jnp.exp(t['d'] + t['a'] * log_n + t['b'] * log_e + t['c'] * log_n * log_e)


register(
  Law(
    name='moe-experts',
    inputs=('params', 'experts'),
    parameters=(
      free('a', (-0.15, 0.0), meaning='slope in log params'),
      free('b', (-0.5, 0.0), meaning='slope in log experts'),
      free('c', (0.0, 0.03), meaning='how the worth of experts changes with size'),
      free('d', (1.0, 4.0), meaning='log loss at one parameter and one expert'),
      scale('E_start', (0.0, 1.5), 3.0, 'expert count at which routing begins to pay'),
      scale('E_range', (2.0, 7.0), 6.0, 'largest useful expert count over E_start, less one'),
    ),
    predict=_routed,
    formula='log loss = a log params + b log E^ + c log params log E^ + d, '
    '1/E^ = 1/(experts - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max, E_max = E_start (1 + E_range)',
    latex=r'\log L = a \log N + b \log \hat E + c \log N \log \hat E + d,\; '
    r'\frac{1}{\hat E} = \frac{1}{E - 1 + (1/E_{start} - 1/E_{max})^{-1}} + \frac{1}{E_{max}}',
    source='Clark et al. 2022, arXiv:2202.01169, eqs. 1-2 (natural logs; for a fixed number of tokens)',
  )
)


def _broken(column: str, breaks: int) -> Law:
  def predict(t, x):
    import jax

    lx = log(x, column)
    total = -t['c_0'] * lx
    for i in range(1, breaks + 1):
      bend = jax.nn.softplus((lx - jax.numpy.log(t[f'd_{i}'])) / t[f'f_{i}'])
      total = total - t[f'c_{i}'] * t[f'f_{i}'] * bend
    return t['a'] + t['b'] * jax.numpy.exp(total)

  parts = [p for i in range(1, breaks + 1) for p in (
    free(f'c_{i}', (-0.5, 1.0), meaning=f'change of slope at break {i}'),
    scale(f'd_{i}', (-2.5, 2.5), 12.0, f'where break {i} lies', **{column: -1}),
    scale(f'f_{i}', (-3.0, 0.5), 6.0, f'width of break {i} in log {column}'),
  )]  # fmt: skip
  return Law(
    name=f'broken-{column}' + ('' if breaks == 1 else f'-{breaks}'),
    inputs=(column,),
    parameters=(floor('a'), coefficient('b', (-3.0, 0.5), **{column: '-c_0'}), free('c_0', (0.0, 0.8)), *parts),
    predict=predict,
    formula=f'loss = a + b {column}^-c_0 prod_i (1 + ({column} / d_i)^(1/f_i))^(-c_i f_i), {breaks} break{"s" if breaks > 1 else ""}',
    latex=r'y = a + b x^{-c_0} \prod_i \left(1 + (x/d_i)^{1/f_i}\right)^{-c_i f_i}',
    source="Caballero et al. 2023, arXiv:2210.14891, eq. 1; checked against the authors' code",
  )


for _column in ('params', 'tokens', 'flops'):
  register(_broken(_column, 1))
register(_broken('flops', 2))
