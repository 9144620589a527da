"""One batched solver for every law: starts and resamples are lanes of one compiled float64 program.

A lane minimises sum_i w_i rho(r_i) over the internal coordinates u of a law (see `analysis.coordinates`), where r is the
residual in log or raw space and rho is c(sign r) times Huber's function of width delta, divided by min(delta, 1).
Squared loss is delta = infinity, least absolute deviation the limit delta -> 0. Each step tries Newton's move with the exact
Hessian, the same damped as Levenberg and Marquardt do, and damped Gauss-Newton moves with weights rho'(r)/r and geodesic
acceleration (which follows the curved valleys of such laws), and takes the best. A lane far from its optimum is first solved at a wide delta, which is then narrowed.
A lane stops by itself: when the Newton decrement g' H^-1 g / 2 says that less than `TOLERANCE` of the objective is left
to gain. Lanes still moving after some steps are regrouped, so that a slow lane costs only itself.
"""

import contextlib
import contextvars
import dataclasses
import functools

import numpy as np

LANES = 32  # lanes of one compiled block: 32 x 256 float64 rows stay in a core's cache
STEPS = 24  # steps of a far lane that is neither quick nor slow; unfinished lanes are regrouped after a half or third
TOLERANCE = 1e-14  # Newton decrement, relative to the objective, at which a lane is done
CERTIFIED = 1e-10  # the same, at which a stopped lane counts as certified
NARROW = 0.125  # delta shrinks by this factor when a stage of the continuation is solved

ACTIVE, DONE, STALLED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Solution:
  """Where each lane ended; arrays lead with the lane axis.

  u [l, p], objective [l] (sum of weighted rho in the user's units), gradient [l, p] and hessian [l, p, p] of the scaled
  objective, gauss_newton [l, p, p], decrement [l] (relative), frozen [l, p] (held by a bound or fixed), steps [l].
  """

  u: np.ndarray
  objective: np.ndarray
  scaled: np.ndarray
  gradient: np.ndarray
  hessian: np.ndarray
  gauss_newton: np.ndarray
  decrement: np.ndarray
  frozen: np.ndarray
  steps: np.ndarray
  delta: np.ndarray
  lam: np.ndarray

  @property
  def certified(self) -> np.ndarray:
    """Lanes whose remaining gain is below `CERTIFIED` of their objective, with a positive definite Hessian."""
    return self.decrement <= CERTIFIED

  def take(self, lanes) -> 'Solution':
    """The given lanes only."""
    return Solution(*(getattr(self, f.name)[lanes] for f in dataclasses.fields(self)))


def cpu_device():
  """The CPU device: float64 is exact there, and accelerators stay free for training."""
  import jax

  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return jax.local_devices()[0]


@functools.lru_cache(maxsize=256)
def residual_function(law, space: str):
  """residual(u [p], matrix [p, p], offset [p], x, y [n]) -> [n]: prediction minus outcome, of logs in log space."""
  import jax.numpy as jnp

  names = law.names
  is_log = np.array([p.transform == 'log' for p in law.parameters])

  def residual(u, matrix, offset, x, y):
    v = (matrix * u).sum(-1) + offset
    theta = {name: jnp.exp(v[i]) if is_log[i] else v[i] for i, name in enumerate(names)}
    value = law.predict(theta, x)
    return (jnp.log(value) if space == 'log' else value) - y

  return residual


@functools.lru_cache(maxsize=256)
def _derivatives(law, space: str):
  import jax

  residual = residual_function(law, space)

  def compute(u, matrix, offset, x, y, pull):
    r = residual(u, matrix, offset, x, y)
    jacobian = jax.jacfwd(residual)(u, matrix, offset, x, y)
    second = jax.hessian(lambda u: (pull * residual(u, matrix, offset, x, y)).sum())(u)
    return r, jacobian, second

  return jax.jit(compute)


def derivatives(law, space: str, inputs: dict, y, u, matrix, offset, pull=None):
  """(residuals [n], jacobian [n, p], sum_i pull_i times the second derivative of residual i [p, p]) at u."""
  import jax

  n = len(y)
  rows = bucket(n)
  pull = np.zeros(n) if pull is None else pull
  with jax.enable_x64(True), jax.default_device(cpu_device()):
    pad = lambda a: np.concatenate([a, np.zeros(rows - n)])  # noqa: E731
    r, jacobian, second = _derivatives(law, space)(u, matrix, offset, pad_inputs(inputs, rows), pad(y), pad(pull))
    return np.asarray(r)[:n], np.asarray(jacobian)[:n], np.asarray(second)


@functools.lru_cache(maxsize=256)
def _program(law, space: str):
  """The compiled block: advances [LANES] lanes by up to `steps` steps. Cached per law and space."""
  import jax
  import jax.numpy as jnp

  residual = residual_function(law, space)

  def evaluate(u, delta, lane, x):
    r = residual(u, lane['matrix'], lane['offset'], x, lane['y'])
    jacobian = jax.jacfwd(residual)(u, lane['matrix'], lane['offset'], x, lane['y'])
    a = jnp.abs(r)
    side = jnp.where(r > 0, lane['tilt'][1], lane['tilt'][0])
    unit = jnp.minimum(delta, 1.0)
    weight = lane['w'] * side / unit
    real = lane['w'] > 0  # rows of no weight must not bring in a NaN
    inner = a <= delta
    rho = jnp.where(inner, 0.5 * r * r, delta * (a - 0.5 * delta))
    objective = jnp.where(real, weight * rho, 0.0).sum()
    psi = jnp.where(real, weight * jnp.clip(r, -delta, delta), 0.0)
    curvature = jnp.where(real & inner, weight, 0.0)
    majorant = jnp.where(real, weight * delta / jnp.maximum(a, delta), 0.0)
    majorant = jnp.where(jnp.isinf(delta), curvature, majorant)
    gradient = (jacobian * psi[:, None]).sum(0)

    def pulled(u):
      return (jax.lax.stop_gradient(psi) * residual(u, lane['matrix'], lane['offset'], x, lane['y'])).sum()

    second = jax.jacfwd(jax.grad(pulled))(u)
    hessian = (jacobian * curvature[:, None]).T @ jacobian + second
    gauss = (jacobian * majorant[:, None]).T @ jacobian
    bad = ~jnp.isfinite(objective) | ~jnp.isfinite(gradient).all() | ~jnp.isfinite(hessian).all()
    return jnp.where(bad, jnp.inf, objective), gradient, hessian, gauss

  def objective_at(u, delta, lane, x):
    a, side = residual(u, lane['matrix'], lane['offset'], x, lane['y']), lane['tilt']
    side = jnp.where(a > 0, side[1], side[0])
    a = jnp.abs(a)
    rho = jnp.where(a <= delta, 0.5 * a * a, delta * (a - 0.5 * delta))
    total = jnp.where(lane['w'] > 0, lane['w'] * side / jnp.minimum(delta, 1.0) * rho, 0.0).sum()
    return jnp.where(jnp.isfinite(total), total, jnp.inf)

  def bend(u, move, delta, lane, x):
    """J' W r'' along the move: what the curvature of the residuals adds to the gradient (geodesic acceleration)."""
    at = lambda u: residual(u, lane['matrix'], lane['offset'], x, lane['y'])  # noqa: E731
    r, second = along(at, u, move)
    majorant = jnp.where(jnp.isinf(delta), 1.0, delta / jnp.maximum(jnp.abs(r), delta))
    weight = lane['w'] * jnp.where(r > 0, lane['tilt'][1], lane['tilt'][0]) / jnp.minimum(delta, 1.0) * majorant
    pull = jax.lax.stop_gradient(jnp.where(lane['w'] > 0, weight * second, 0.0))
    return jax.grad(lambda u: (pull * at(u)).sum())(u)

  def along(at, u, move):
    (r, _), (_, second) = jax.jvp(lambda u: jax.jvp(at, (u,), (move,)), (u,), (move,))
    return r, second

  def solve(matrix, rhs):
    chol = jnp.linalg.cholesky(matrix)
    return jax.scipy.linalg.cho_solve((chol, True), rhs[..., None])[..., 0]

  def step(state, lane, x):
    u, value, g, h, gauss, lam, delta, status, count = (
      state[k] for k in ('u', 'value', 'g', 'h', 'gauss', 'lam', 'delta', 'status', 'count')
    )
    lower, upper = lane['lower'], lane['upper']
    frozen = (lower == upper) | ((u <= lower) & (g > 0)) | ((u >= upper) & (g < 0))
    keep = ~frozen
    both = keep[:, :, None] & keep[:, None, :]
    eye = jnp.eye(u.shape[-1])
    g_free = jnp.where(keep, g, 0.0)
    h_free = jnp.where(both, h, 0.0)
    gauss_free = jnp.where(both, gauss, 0.0)
    diagonal = jnp.einsum('lii->li', gauss_free)
    diagonal = jnp.maximum(diagonal, 1e-13 * diagonal.max(-1, keepdims=True))
    diagonal = jnp.where(keep & (diagonal > 0), diagonal, 1.0)
    damp = lambda amount: eye * (amount[:, None] * diagonal + jnp.where(keep, 0.0, 1.0))[:, None, :]  # noqa: E731
    tiny = jnp.full_like(lam, 1e-14)

    newton = -solve(h_free + damp(tiny), g_free)
    decrement = -0.5 * (newton * g_free).sum(-1)
    convex = jnp.isfinite(decrement) & (decrement >= 0)
    relative = jnp.where(convex, decrement, jnp.inf) / jnp.maximum(value, 1e-300)
    newton = jnp.where(convex[:, None], newton, 0.0)
    damped = -solve(h_free + damp(lam), g_free)
    damped = jnp.where((jnp.isfinite(damped).all(-1) & ((damped * g_free).sum(-1) < 0))[:, None], damped, 0.0)

    def accelerated():
      """Gauss-Newton moves [2, l, p] at two dampings, with their second-order correction."""
      matrices = jnp.stack([gauss_free + damp(lam), gauss_free + damp(lam * 0.05)])
      first = -solve(matrices, jnp.stack([g_free, g_free]))
      first = jnp.where(jnp.isfinite(first), first, 0.0)
      pull = jax.vmap(jax.vmap(bend, in_axes=(0, 0, 0, 0, None)), in_axes=(None, 0, None, None, None))(
        u, first, delta, lane, x
      )
      second = -0.5 * solve(matrices, jnp.where(keep, pull, 0.0))
      size = lambda a: jnp.sqrt((a * a * diagonal).sum(-1, keepdims=True))  # noqa: E731
      small = (size(second) <= 0.75 * size(first)) & jnp.isfinite(second).all(-1, keepdims=True)
      return first + jnp.where(small, second, 0.0)

    # near an optimum Newton's moves are enough, and much cheaper
    hard = ((status == ACTIVE) & ((lam > 1e-9) | ~convex)).any() & ~state['first']
    extra = jax.lax.cond(hard, accelerated, lambda: jnp.zeros((2, *u.shape)))
    moves = jnp.concatenate([jnp.stack([newton, damped, 0.3 * newton]), extra])
    longest = (jnp.abs(moves) / lane['reach']).max(-1, keepdims=True)
    moves = moves / jnp.maximum(longest, 1.0)
    trials = jnp.clip(u + moves, lower, upper)
    values = jax.vmap(jax.vmap(objective_at, in_axes=(0, 0, 0, None)), in_axes=(0, None, None, None))(
      trials, delta, lane, x
    )
    # at rounding level Newton's own step is the one to trust
    close = convex & (relative <= 1e-11)
    chosen = jnp.where(close, 0, jnp.argmin(values, 0))
    at = jnp.arange(u.shape[0])

    final = delta <= lane['delta']
    solved = (relative <= jnp.where(final, TOLERANCE, 1e-2)) | (value <= lane['zero'])
    # a wide stage is only a way to a good start: it is left when solved nearly, or after some steps
    spent = state['stage'] >= 16
    first = state['first']
    narrow = (solved | spent) & ~final & ~first
    done = solved & final & ~first
    delta_next = jnp.where(narrow, jnp.maximum(lane['delta'], jnp.minimum(delta, lane['wide']) * NARROW), delta)
    trial = jnp.where((narrow | first)[:, None], u, trials[chosen, at])

    value_t, g_t, h_t, gauss_t = jax.vmap(evaluate, in_axes=(0, 0, 0, None))(trial, delta_next, lane, x)
    gain = value - value_t
    # below rounding of the objective the gradient decides
    rounding = 1e-13 * jnp.abs(value)
    frozen_t = (lower == upper) | ((trial <= lower) & (g_t > 0)) | ((trial >= upper) & (g_t < 0))
    size = lambda g, out: (jnp.where(out, 0.0, g) ** 2 / diagonal).sum(-1)  # noqa: E731
    flatter = (jnp.abs(gain) <= rounding) & (size(g_t, frozen_t) < size(g, frozen))
    accept = jnp.isfinite(value_t) & ((gain > 0) | flatter | narrow | first)
    shrink = jnp.array([0.1, 0.7, 1.0, 0.7, 0.05])[chosen]
    lam_next = jnp.where(accept, lam * shrink, jnp.maximum(lam * 10.0, 1e-5))
    lam_next = jnp.where(narrow, jnp.clip(lam, 1e-8, 1e-3), lam_next)
    lam_next = jnp.where(first, lam, jnp.maximum(lam_next, 1e-14))

    active = status == ACTIVE
    stuck = active & ~done & ((lam_next > 1e10) | (first & ~jnp.isfinite(value_t)))
    leave = stuck & ~final & ~first  # a stage of the continuation that stalls is left for the next one
    take = active & accept & ~done
    pick = lambda new, old: jnp.where(take.reshape(take.shape + (1,) * (old.ndim - 1)), new, old)  # noqa: E731
    return {
      'u': pick(trial, u),
      'value': pick(value_t, value),
      'g': pick(g_t, g),
      'h': pick(h_t, h),
      'gauss': pick(gauss_t, gauss),
      'lam': jnp.where(active & ~done, jnp.where(leave, 1e-2, lam_next), lam),
      'delta': jnp.where(active & ~done, delta_next, delta),
      'status': jnp.where(active & done, DONE, jnp.where(stuck & (final | first), STALLED, status)),
      'count': count + (active & ~done & ~first),
      'first': jnp.array(False),
      'stage': jnp.where(active, jnp.where(leave, 10**6, jnp.where(narrow, 0, state['stage'] + 1)), state['stage']),
      'relative': jnp.where(active, relative, state['relative']),
      'frozen': jnp.where(active[:, None], frozen, state['frozen']),
    }

  def run(u, lam, delta, status, count, stage, lane, x, steps):
    # the first pass of the loop only evaluates, so that the derivatives are compiled once
    value, matrix = jnp.full(u.shape[0], jnp.inf), jnp.zeros((*u.shape, u.shape[1]))
    state = {'u': u, 'value': value, 'g': jnp.zeros_like(u), 'h': matrix, 'gauss': matrix, 'lam': lam, 'delta': delta}
    state |= {'status': status, 'count': count, 'stage': stage, 'first': jnp.array(True)}
    state |= {'relative': value, 'frozen': jnp.zeros(u.shape, bool)}

    def go_on(carry):
      i, state = carry
      return (i < steps) & (state['status'] == ACTIVE).any()

    return jax.lax.while_loop(go_on, lambda c: (c[0] + 1, step(c[1], lane, x)), (0, state))[1]

  return jax.jit(run)


_least_rows = contextvars.ContextVar('least_rows', default=0)


@contextlib.contextmanager
def padded(n: int):
  """Within it all fits of this thread are padded to at least the rows of a fit of `n`, so that all share its programs."""
  token = _least_rows.set(bucket(n))
  try:
    yield
  finally:
    _least_rows.reset(token)


def bucket(n: int) -> int:
  """Rows are padded to a few sizes, so that fits of many row counts share a compiled program."""
  n = max(n, _least_rows.get())
  return next((size for size in (32, 128) if n <= size), 1 << max(8, (n - 1).bit_length()))


def pad_inputs(inputs: dict, n: int) -> dict:
  """Columns padded to `n` rows by repeating the first, with the log of each positive one beside it."""
  padded = {}
  for name, column in inputs.items():
    column = np.asarray(column, np.float64)
    padded[name] = np.concatenate([column, np.repeat(column[:1], n - len(column), axis=0)])
    if (column > 0).all():
      padded[f'log {name}'] = np.log(padded[name])
  return padded


def minimise(
  law,
  space: str,
  inputs: dict,
  y: np.ndarray,
  weights: np.ndarray,
  start: np.ndarray,
  lower: np.ndarray,
  upper: np.ndarray,
  matrix: np.ndarray,
  offset: np.ndarray,
  *,
  delta: float,
  wide: float | None = None,
  tilt: tuple[float, float] = (1.0, 1.0),
  reach: np.ndarray | None = None,
  max_steps: int = 240,
  alike: bool = False,
) -> Solution:
  """Minimises all lanes; see the module's docstring.

  inputs {column: [n, ...]}; y [n] or [l, n], already the log of the outcome in log space; weights [n] or [l, n];
  start, lower, upper [l, p] (equal bounds fix a coordinate); matrix [p, p] or [l, p, p] and offset [p] or [l, p] map u to
  the transformed parameters; delta the Huber width in residual units; wide the width to begin the continuation with (None: begin at delta);
  tilt the factors of rho for negative and positive residuals; reach [p] the longest step per coordinate. alike: the lanes are
  starts of one problem, so that once half are done, one that takes over twice their steps and is no lower is given up.
  """
  import jax

  lanes, p = start.shape
  n = np.shape(y)[-1]
  rows = bucket(n)
  y = np.broadcast_to(y, (lanes, n))
  weights = np.broadcast_to(weights, (lanes, n))
  matrix = np.broadcast_to(matrix, (lanes, p, p))
  offset = np.broadcast_to(offset, (lanes, p))
  reach = np.broadcast_to(np.full(p, 4.0) if reach is None else reach, (lanes, p))
  start = np.clip(start, lower, upper)
  first = delta if wide is None else max(delta, wide)
  program = _program(law, space)
  steps = STEPS // 2 if wide is not None else STEPS // 3

  out_names = ('u', 'value', 'g', 'h', 'gauss', 'relative', 'frozen', 'status', 'count', 'stage', 'lam', 'delta')
  state = {
    'u': start.astype(np.float64),
    'lam': np.full(lanes, 1e-3 if wide is not None else 1e-14),
    'delta': np.full(lanes, float(first)),
    'status': np.zeros(lanes, np.int32),
    'count': np.zeros(lanes, np.int32),
    'stage': np.zeros(lanes, np.int32),
  }
  results: dict[str, np.ndarray] = {}
  active = np.arange(lanes)
  with jax.enable_x64(True), jax.default_device(cpu_device()):
    x = {name: jax.numpy.asarray(column) for name, column in pad_inputs(inputs, rows).items()}
    while len(active):
      calls = []
      for at in range(0, len(active), LANES):
        block = active[at : at + LANES]
        index = np.concatenate([block, np.repeat(block[-1:], LANES - len(block))])
        lane = {
          'y': np.zeros((LANES, rows)),
          'w': np.zeros((LANES, rows)),
          'lower': lower[index],
          'upper': upper[index],
          'matrix': matrix[index],
          'offset': offset[index],
          'reach': reach[index],
          'delta': np.full(LANES, float(delta)),
          'wide': np.full(LANES, float(first) if np.isfinite(first) else 1e300),
          'tilt': np.broadcast_to(np.asarray(tilt, np.float64), (LANES, 2)),
        }
        lane['y'][:, :n] = y[index]
        lane['w'][:, :n] = weights[index]
        # an exact fit has residuals at rounding level: nothing is left to gain there
        lane['zero'] = (0.5e-26 / min(delta, 1.0)) * (lane['w'] * np.maximum(lane['y'] ** 2, 1.0)).sum(-1)
        calls.append(
          (
            block,
            program(*(state[k][index] for k in ('u', 'lam', 'delta', 'status', 'count', 'stage')), lane, x, steps),
          )
        )
      for block, out in calls:
        for name in out_names:
          value = np.asarray(out[name])[: len(block)]
          if name not in results:
            results[name] = np.zeros((lanes, *value.shape[1:]), value.dtype)
          results[name][block] = value
      for name in state:
        state[name] = results[name]
      results['status'] = np.where(
        (results['status'] == ACTIVE) & (results['count'] >= max_steps), STALLED, results['status']
      )
      if alike:
        done = results['status'] == DONE
        if 2 * done.sum() >= lanes:
          late = results['count'] > 2 * np.median(results['count'][done]) + STEPS
          better = (results['delta'] <= delta) & (results['value'] < results['value'][done].min())
          results['status'] = np.where((results['status'] == ACTIVE) & late & ~better, STALLED, results['status'])
      state['status'] = results['status']
      active = active[results['status'][active] == ACTIVE]
  unit = min(delta, 1.0)
  relative = np.where(results['delta'] <= delta, results['relative'], np.inf)
  zero = (0.5e-26 / unit) * (weights * np.maximum(y**2, 1.0)).sum(-1)
  relative = np.where(results['value'] <= zero, 0.0, relative)
  return Solution(
    u=results['u'],
    objective=np.where(results['delta'] <= delta, results['value'] * unit, np.inf),
    scaled=results['value'],
    gradient=results['g'],
    hessian=results['h'],
    gauss_newton=results['gauss'],
    decrement=relative,
    frozen=results['frozen'],
    steps=results['count'],
    delta=results['delta'],
    lam=results['lam'],
  )
