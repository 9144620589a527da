"""Fits a law to a table of runs and says how far to trust it: estimate, certificate, standard errors, intervals.

from analysis import fit
result = fit.fit(frame, 'chinchilla', bootstrap=4000)
print(result.summary()); result.predict({'params': 7e9, 'tokens': 140e9})
"""

import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np

from analysis import certificate as certify
from analysis import coordinates, laws, uncertainty
from analysis.problem import Problem, parse_loss, smooth
from analysis.rows import gather, to_columns
from scaling.errors import UserError, unknown

L1_WIDTH = 1e-9  # delta that stands for least absolute deviation before the exact finish, in units of the outcome


@dataclasses.dataclass
class Fit:
  """One fitted law; the fields are those of `fits.json`. See `fit` for what they hold.

  samples [s, p] are draws of the parameters in their order (`sample_kind` 'bootstrap' or 'asymptotic'), behind every interval
  of a derived number; se_by_row are standard errors as if rows were independent; residuals [n] are outcome minus prediction in the residual space.
  """

  law: str
  formula: str
  settings: dict
  n_points: int
  n_runs: int
  estimate: dict
  se: dict
  ci95: dict
  objective: float
  certificate: dict
  frontier: dict
  seconds: float
  residual_sd: float = math.nan
  se_by_row: dict = dataclasses.field(default_factory=dict)
  correlation: dict = dataclasses.field(default_factory=dict)
  warnings: list = dataclasses.field(default_factory=list)
  sample_kind: str = 'asymptotic'
  samples: np.ndarray | None = None
  residuals: np.ndarray | None = None
  definition: object = dataclasses.field(default=None, repr=False, compare=False)
  problem: object = dataclasses.field(default=None, repr=False, compare=False)

  @property
  def declared(self) -> laws.Law:
    """The law itself (a registered name, or the object that was given to `fit`)."""
    return self.definition or laws.get(self.law)

  @property
  def space(self) -> str:
    """'log' or 'raw': the space of the residuals."""
    return self.settings['space']

  def predict(self, columns: dict) -> np.ndarray:
    """The law's outcome [n] at these input columns (scalars broadcast), at the estimate."""
    return uncertainty.evaluate(self.declared, np.array([[self.estimate[k] for k in self.declared.names]]), columns)[0]

  def predict_samples(self, columns: dict) -> np.ndarray:
    """The outcome [s, n] under each draw of the parameters."""
    return uncertainty.evaluate(self.declared, self.samples, columns)

  def predict_interval(
    self, columns: dict, level: float = 0.95, new_run: bool = False
  ) -> tuple[np.ndarray, np.ndarray]:
    """Low and high [n] of the outcome; `new_run` adds the scatter of a single run, drawn from the residuals.

    Where runs were repeated, that scatter is no narrower than theirs.
    """
    values = self.predict_samples(columns)
    if new_run:
      rng = np.random.default_rng(0)
      scatter = rng.choice(self.residuals, values.shape) * math.sqrt(
        self.n_points / max(1, self.n_points - len(self.estimate))
      )
      floor = (self.settings.get('replicates') or {}).get('sd') or 0.0
      if 0 < self.residual_sd < floor:
        scatter = scatter * (floor / self.residual_sd)
      values = values * np.exp(scatter) if self.space == 'log' else values + scatter
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high

  def derive(self, function, level: float = 0.95) -> dict:
    """{'value', 'se', 'ci95'} of function(theta), where theta is a dict of numbers or of arrays [s]; e.g. lambda t: t['A'] / t['B']."""
    with np.errstate(all='ignore'):
      value = function({k: np.float64(v) for k, v in self.estimate.items()})
      draws = function(dict(zip(self.declared.names, self.samples.T, strict=True)))
    return uncertainty.interval(value, draws, level)

  def summary(self) -> str:
    """A few lines for a person: estimates, intervals, certificate, warnings."""
    return certify.summary(self)

  def to_json(self) -> dict:
    """Plain JSON, at full precision; an unbounded end of an interval is null."""
    record = {}
    for field in dataclasses.fields(self):
      if field.name in ('definition', 'problem'):
        continue
      value = getattr(self, field.name)
      if field.name == 'samples' and value is not None:
        value = [[float(f'{v:.10g}') for v in row] for row in value]
      record[field.name] = _jsonable(value)
    return record

  @classmethod
  def from_json(cls, record: dict, law: laws.Law | None = None) -> 'Fit':
    """The fit that `to_json` wrote; keys it does not know are ignored. `law` is needed only for a law that is not registered."""
    known = {f.name for f in dataclasses.fields(cls)}
    values = {k: v for k, v in record.items() if k in known}
    for name in ('samples', 'residuals'):
      if values.get(name) is not None:
        values[name] = np.array(
          [[math.nan if v is None else v for v in row] for row in values[name]] if name == 'samples' else values[name]
        )
    # JSON has no infinity: an open end, or a number that was not finite, is null there
    number = lambda v, instead=math.nan: instead if v is None else v  # noqa: E731
    ends = lambda pair: [number(pair[0], -math.inf), number(pair[1], math.inf)]  # noqa: E731
    values['ci95'] = {k: ends(pair) for k, pair in values['ci95'].items()}
    for name in ('estimate', 'se', 'se_by_row'):
      values[name] = {k: number(v) for k, v in values.get(name, {}).items()}
    values['frontier'] = {
      k: {'value': number(v['value']), 'se': number(v['se']), 'ci95': ends(v['ci95'])}
      for k, v in values.get('frontier', {}).items()
    }
    values['certificate'] = dict(values['certificate'])
    for name in ('gradient_norm', 'hessian_condition', 'decrement'):
      values['certificate'][name] = number(values['certificate'].get(name), math.inf)
    for name in ('objective', 'residual_sd'):
      values[name] = number(values.get(name))
    return cls(**values, definition=law)


def _jsonable(value):
  if isinstance(value, dict):
    return {str(k): _jsonable(v) for k, v in value.items()}
  if isinstance(value, list | tuple | np.ndarray):
    return [_jsonable(v) for v in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def save(fits: list[Fit], path: str | Path) -> Path:
  """Writes the list of fits as `fits.json`."""
  path = Path(path)
  path.write_text(json.dumps([f.to_json() for f in fits], indent=1) + '\n', encoding='utf-8')
  return path


def load(path: str | Path) -> list[Fit]:
  """Reads the fits of a `fits.json`; a file of another form is a UserError."""
  try:
    return [Fit.from_json(record) for record in json.loads(Path(path).read_text(encoding='utf-8'))]
  except FileNotFoundError:
    raise UserError(f'no file {str(path)!r}: give a fits.json written by a fit') from None
  except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{str(path)!r} is not a list of fits ({error}): give a fits.json written by a fit') from None


def _replicates(law, rows, space: str) -> dict | None:
  """{'sd', 'groups', 'degrees'} of rows with equal inputs (runs that differ in seed), None where there are none."""
  if any(np.ndim(column) > 1 for column in rows.inputs.values()):
    return None
  noise = uncertainty.replicate_noise({**rows.inputs, law.outcome: rows.outcome}, law)
  if not noise['degrees']:
    return None
  return {'sd': noise['sd_log' if space == 'log' else 'sd'], 'groups': noise['groups'], 'degrees': noise['degrees']}


def fit(
  table,
  law,
  *,
  loss: str | None = None,
  delta: float = 1e-3,
  space: str | None = None,
  tau: float = 0.5,
  columns: dict | None = None,
  outcome: str | None = None,
  weights: str | None = None,
  cluster: str | None = 'auto',
  fixed: dict | None = None,
  tied: dict | None = None,
  bounds: dict | None = None,
  starts: int = 64,
  init: dict | None = None,
  bootstrap: int = 0,
  resample: str = 'cluster',
  seed: int = 0,
  draws: int = 400,
  drop: bool = False,
  accept: tuple = (),
  probe: bool = True,
) -> Fit:
  """Fits `law` (a name or a Law) to a table (frame, dict of columns, list of records) and certifies the result.

  loss: 'squared', 'huber', 'l1', 'asymmetric' (quantile tau), each also 'log-...' (residuals of the log); default the law's own
  space with Huber's function of width delta. columns: {law's column name: table's}. cluster: the column that names the
  run whose rows belong together ('auto': run_id if there is one). fixed, bounds: by parameter; tied: {parameter: equals}.
  init: natural values added as a start. bootstrap: number of resamples, drawn by `resample`: 'cluster', 'row', 'residual' or 'parametric'.
  drop leaves bad rows out instead of raising; accept names checks to let pass ('duplicates', 'units', 'one-value').
  probe: walk each parameter away from its estimate to find what the data cannot identify.

  Without a bootstrap, se and ci95 are sandwich (by cluster) with Student's t; with one, they are its standard deviation and percentiles.
  Intervals of derived numbers and predictions come from samples: those of the bootstrap, else draws from the objective scaled by
  the sandwich (`spread.draw`), else, where too few of these are any good, `draws` refits of resampled clusters (0: never).
  Raises UserError for anything wrong with the table or the settings.
  """
  began = time.perf_counter()
  law = laws.get(law)
  loss_name, space, delta, tilt = parse_loss(loss, law, delta, space, tau)
  if resample not in uncertainty.RESAMPLES:
    raise unknown('way to resample', resample, uncertainty.RESAMPLES)
  free = [
    p.name for p in law.parameters if p.name not in (fixed or {}) and p.name not in {**dict(law.tied), **(tied or {})}
  ]
  names = set(to_columns(table))
  if cluster == 'auto':
    cluster = 'run_id' if 'run_id' in names or 'run_id' in (columns or {}) else None
  rows = gather(
    law,
    table,
    space=space,
    n_free=len(free),
    columns=columns,
    outcome=outcome,
    weights=weights,
    cluster=cluster,
    drop=drop,
    accept=accept,
  )
  typical = float(np.median(np.abs(rows.outcome))) or float(np.abs(rows.outcome).max())
  if math.isnan(delta):
    delta = L1_WIDTH * (1.0 if space == 'log' else typical)
  coords = coordinates.build(law, rows.inputs, typical, fixed=fixed, tied=tied, bounds=bounds)
  problem = Problem(law, rows, space, loss_name, delta, tilt, coords)

  begin = coords.draw_starts(starts, seed)
  if init is not None:
    point = coords.internal(np.array([init.get(k, np.nan) for k in law.names]))
    begin = np.concatenate([np.where(np.isfinite(point), point, begin[0])[None], begin])
  solution = problem.minimise(begin, alike=True)
  order = np.where(np.isfinite(solution.objective), solution.objective, np.inf)
  if not np.isfinite(order).any():
    raise UserError(
      f'no start of {law.name!r} gives finite {law.outcome}: check the columns {", ".join(law.inputs)} and their units'
    )
  best = int(np.argmin(order))
  problem = dataclasses.replace(problem, u=solution.u[best])
  objective = float(solution.objective[best])
  exact = False
  if loss_name in ('l1', 'asymmetric'):
    u, objective, exact = certify.vertex(problem)
    problem = dataclasses.replace(problem, u=u)
  certificate, warnings = certify.certificate(problem, solution, best, exact)
  spread = uncertainty.sandwich(problem)
  values = coords.values(problem.u)
  estimate = dict(zip(law.names, values.tolist(), strict=True))

  if bootstrap:
    samples, boot = uncertainty.bootstrap(problem, bootstrap, resample, seed)
    certificate['bootstrap'] = boot
    kind = 'bootstrap'
    if boot['certified'] < bootstrap:
      warnings.append(f'{bootstrap - boot["certified"]} of {bootstrap} resamples are not certified')
    se = dict(zip(law.names, np.std(samples, axis=0, ddof=1).tolist(), strict=True))
    se |= {
      k: 0.0
      for k, moves in zip(law.names, np.ptp(samples, axis=0) > 1e-12 * np.abs(samples).max(0), strict=True)
      if not moves
    }
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
  else:
    kind = 'asymptotic'
    samples, worth = uncertainty.draw(problem, spread, 1000, seed)
    if worth < 50 and draws and rows.n_clusters >= max(8, len(free) + 2):
      kind = 'bootstrap'
      samples, _ = uncertainty.bootstrap(smooth(problem), draws, 'cluster', seed, thorough=False)
    se, (low, high) = spread.se, spread.ci(0.95)
  full_se, se_by_row = dict(se), spread.se_by_row
  if bootstrap and resample == 'cluster' and 3 <= rows.n_clusters < rows.n:
    by_row, _ = uncertainty.bootstrap(problem, min(bootstrap, 400), 'row', seed)
    se_by_row = {
      k: v if se[k] else 0.0 for k, v in zip(law.names, np.std(by_row, axis=0, ddof=1).tolist(), strict=True)
    }
  ci95 = {k: [float(a), float(b)] for k, a, b in zip(law.names, low, high, strict=True)}
  if probe:
    found = certify.probe(problem, certificate, spread)
    certificate['unidentified'] = found['unidentified']
    for name, ends in found['ci95'].items():
      ci95[name] = ends
      if not bootstrap:
        se[name] = math.nan
  warnings = rows.warnings + warnings + certify.cluster_warning(full_se, se_by_row, rows, cluster)
  residuals = uncertainty.residuals(problem, problem.u)
  result = Fit(
    law=law.name,
    formula=law.formula,
    settings={
      'loss': ('log-' if space == 'log' else '') + loss_name,
      'delta': delta if loss_name == 'huber' else None,
      'tau': tau if loss_name == 'asymmetric' else None,
      'space': space,
      'weights': weights,
      'columns': {k: (columns or {}).get(k, k) for k in (*law.inputs, outcome or law.outcome)},
      'outcome': outcome or law.outcome,
      'cluster': cluster,
      'rows_used': rows.n,
      'rows_dropped': rows.dropped,
      'starts': len(begin),
      'seed': seed,
      'fixed': dict(fixed or {}),
      'tied': {**dict(law.tied), **(tied or {})},
      'bounds': {k: list(v) for k, v in (bounds or {}).items()},
      'bootstrap': bootstrap,
      'draws': len(samples),
      'replicates': _replicates(law, rows, space),
      'resample': resample if bootstrap else None,
      'interval': f'bootstrap by {resample}' if bootstrap else ('sandwich by ' + (cluster or 'row')),
    },
    n_points=rows.n,
    n_runs=rows.n_clusters,
    estimate=estimate,
    se={k: float(v) for k, v in se.items()},
    ci95=ci95,
    objective=objective,
    certificate=certificate,
    frontier={},
    seconds=0.0,
    residual_sd=float(np.sqrt((residuals**2).sum() / max(1, rows.n - coords.n_free))),
    se_by_row={k: float(v) for k, v in se_by_row.items()},
    correlation=spread.correlation(),
    warnings=warnings,
    sample_kind=kind,
    samples=samples,
    residuals=residuals,
    definition=law,
    problem=problem,
  )
  if law.exponents is not None:
    for name in ('a', 'b'):
      result.frontier[name] = result.derive(lambda t, name=name: law.exponents(t)[name])
  result.seconds = time.perf_counter() - began
  return result
