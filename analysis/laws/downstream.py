"""From loss to what loss is for: task accuracy and error, optimal batch and learning rate, reward over-optimisation."""

from analysis.laws.base import Law, Parameter, coefficient, exponent, free, log, power, register, scale

_INF = float('inf')


def _sigmoid(t, x):
  import jax

  return t['b'] + t['a'] * jax.nn.sigmoid(t['k'] * (x['loss'] - t['x_0']))


task_accuracy = register(
  Law(
    name='task-accuracy',
    inputs=('loss',),
    parameters=(
      free('a', (-1.0, -0.1), (-1.0, 0.0), meaning='accuracy at high loss less accuracy at low loss'),
      free('x_0', (0.2, 3.0), (0.0, _INF), meaning='loss at the middle of the slope'),
      free('k', (0.5, 10.0), (0.0, _INF), meaning='steepness per unit of loss'),
      free('b', (0.3, 1.0), (0.0, 1.0), meaning='accuracy at low loss'),
    ),
    predict=_sigmoid,
    formula='accuracy = b + a / (1 + exp(-k (loss - x_0))), a <= 0',
    latex=r'\mathrm{acc} = b + \frac{a}{1 + e^{-k(L - x_0)}}',
    source="Bhagia et al. 2024, arXiv:2412.04403, step 2; bounds as in the authors' code",
    outcome='accuracy',
    space='raw',
    signed_inputs=('loss',),
  )
)


def _error(t, x):
  import jax.numpy as jnp

  return t['epsilon'] - t['k'] * jnp.exp(-t['gamma'] * x['loss'])


task_error = register(
  Law(
    name='task-error',
    inputs=('loss',),
    parameters=(
      free('epsilon', (0.2, 1.0), (0.0, _INF), meaning='error at infinite loss'),
      Parameter('k', 'log', (-3.0, 4.0), (0.0, _INF), meaning='size of the gain'),
      Parameter('gamma', 'log', (-2.0, 1.5), (0.0, _INF), spread=6.0, meaning='rate per unit of loss'),
    ),
    predict=_error,
    formula='error = epsilon - k exp(-gamma loss)',
    latex=r'\mathrm{Err} = \epsilon - k\, e^{-\gamma L}',
    source="Gadre et al. 2024, arXiv:2403.08540, eq. 5; checked against the authors' code",
    outcome='error',
    space='raw',
    signed_inputs=('loss',),
  )
)

critical_batch = register(
  Law(
    name='critical-batch',
    inputs=('loss',),
    parameters=(coefficient('B_star', (-2.0, 2.0), loss='-inverse_alpha_B'), exponent('inverse_alpha_B', (0.5, 8.0))),
    predict=lambda t, x: t['B_star'] * power(x, 'loss', -t['inverse_alpha_B']),
    formula='critical_batch = B_star / loss^(1 / alpha_B)',
    latex=r'B_{crit} = B_* / L^{1/\alpha_B}',
    source='Kaplan et al. 2020, arXiv:2001.08361, eq. 1.4, after McCandlish et al. 2018, arXiv:1812.06162',
    outcome='critical_batch',
  )
)

steps_to_loss = register(
  Law(
    name='steps-to-loss',
    inputs=('batch_size',),
    parameters=(coefficient('S_min', (-4.0, 0.0)), scale('B_crit', (-4.0, 4.0), batch_size=-1)),
    predict=lambda t, x: t['S_min'] * (1.0 + t['B_crit'] / x['batch_size']),
    formula='steps = S_min (1 + B_crit / batch_size), the same as (S/S_min - 1)(E/E_min - 1) = 1 with B_crit = E_min / S_min',
    latex=r'\left(\frac{S}{S_{min}} - 1\right)\left(\frac{E}{E_{min}} - 1\right) = 1',
    source='McCandlish et al. 2018, arXiv:1812.06162, eq. 2.11: steps and examples that reach one given loss',
    outcome='steps',
  )
)

learning_rate = register(
  Law(
    name='learning-rate',
    inputs=('params', 'tokens'),
    parameters=(
      coefficient('A', (-1.0, 1.0), params='-alpha', tokens='beta'),
      free('alpha', (0.0, 1.0), meaning='fall with parameters'),
      free('beta', (-0.3, 0.6), meaning='rise with tokens'),
    ),
    predict=lambda t, x: t['A'] * power(x, 'params', -t['alpha']) * power(x, 'tokens', t['beta']),
    formula='learning_rate = A tokens^beta / params^alpha',
    latex=r'\eta^* = A\, N^{-\alpha} D^{\beta}',
    source='Li et al. 2025 (Step Law), arXiv:2503.04715, eq. 1 (published: 1.79, 0.713, 0.307)',
    outcome='learning_rate',
  )
)

for _column in ('tokens', 'flops', 'params'):
  register(
    Law(
      name=f'batch-size-{_column}',
      inputs=(_column,),
      parameters=(coefficient('A', (-1.0, 1.0), **{_column: 'beta'}), free('beta', (0.0, 0.8))),
      predict=lambda t, x, column=_column: t['A'] * power(x, column, t['beta']),
      formula=f'batch_size = A {_column}^beta',
      latex=r'B^* = A\, x^{\beta}',
      source='Li et al. 2025 (Step Law), arXiv:2503.04715, eq. 1, in tokens (published: 0.58, 0.571)',
      outcome='batch_size',
    )
  )


def _root(x):
  import jax.numpy as jnp

  return jnp.sqrt(x['kl'])


best_of_n = register(
  Law(
    name='overoptimisation-best-of-n',
    inputs=('kl',),
    parameters=(free('alpha', (0.0, 2.0)), free('beta', (-0.2, 0.5))),
    predict=lambda t, x: _root(x) * (t['alpha'] - t['beta'] * _root(x)),
    formula='gold_reward = d (alpha - beta d), d = sqrt(kl)',
    latex=r'R = d\,(\alpha - \beta d),\; d = \sqrt{D_{KL}}',
    source='Gao et al. 2022, arXiv:2210.10760, section 1; kl in nats between policy and its start',
    outcome='gold_reward',
    space='raw',
  )
)

reinforced = register(
  Law(
    name='overoptimisation-rl',
    inputs=('kl',),
    parameters=(free('alpha', (0.0, 2.0)), free('beta', (-0.2, 0.5))),
    predict=lambda t, x: _root(x) * (t['alpha'] - 0.5 * t['beta'] * log(x, 'kl')),
    formula='gold_reward = d (alpha - beta log d), d = sqrt(kl)',
    latex=r'R = d\,(\alpha - \beta \log d),\; d = \sqrt{D_{KL}}',
    source='Gao et al. 2022, arXiv:2210.10760, section 1; not meant for the neighbourhood of kl = 0',
    outcome='gold_reward',
    space='raw',
  )
)
