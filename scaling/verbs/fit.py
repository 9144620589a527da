"""`scaling fit`: one law to one table."""

from absl import flags

from scaling import verbs

USAGE = 'TABLE_OR_DIR --law=NAME [--delta=1e-3] [--bootstrap=N] [--cluster=COLUMN] [--out=fits.json]'
SUMMARY = 'fits a scaling law to a table from anywhere, with standard errors, intervals and a certificate'
DETAILS = """
The table is CSV, Parquet, JSON lines or the folder of a study. It needs the columns that the law is of: params, tokens and loss for
most; run_id, flops and any other column may follow. --select maps foreign names and derives columns as one SQL select list, run by
DuckDB over the table alone. Rows marked held_out are never fitted. Estimates are printed with a certificate: gradient norm, share of
starts that reach the best, condition of the Hessian, parameters on a bound, and what the data cannot identify.

An unknown --law is answered with the nearest names; --law=list lists all.
"""
EXAMPLES = (
  'scaling fit runs.csv --law=chinchilla --bootstrap=1000 --out=fits.json',
  'scaling fit out/quickstart --law=kaplan',
  'scaling fit runs.csv --law=chinchilla --fixed=E=1.69 --tied=beta=alpha --profile=alpha',
  """scaling fit svg.csv --law=chinchilla --select '"Model Size" AS params, "Training FLOP"/(6*"Model Size") AS tokens, loss'""",
)
ARGUMENTS = (0, 1)


def define(values: flags.FlagValues) -> None:
  """The flags."""

  def text(name: str, default: str | None, about: str) -> None:
    flags.DEFINE_string(name, default, about, flag_values=values)

  text('law', 'chinchilla', 'a law, or several with commas')
  text('select', None, 'SQL select list that makes the columns from the table')
  text('where', None, 'SQL condition on rows')
  text(
    'loss',
    None,
    "what is minimised: squared, huber, l1, asymmetric, or log- and one of these; the law's own if not given",
  )
  flags.DEFINE_float('delta', 1e-3, 'width of the Huber loss, in log units for log-huber', flag_values=values)
  flags.DEFINE_integer('bootstrap', 0, 'resamples for the intervals; 0: from the sandwich covariance',
                       lower_bound=0, flag_values=values)  # fmt: skip
  text('cluster', 'auto', 'column whose equal values are resampled together; auto: run_id if there is one; none: rows')
  flags.DEFINE_enum('rows', 'auto', ['auto', 'final', 'all'], 'the last row of each run, or each row; auto: the last where the table '
                    'marks it (a study), else each', flag_values=values)  # fmt: skip
  flags.DEFINE_boolean(
    'drop', False, 'leave bad rows out, and say which, instead of refusing the table', flag_values=values
  )
  flags.DEFINE_integer('seed', 0, 'of starts and resamples', flag_values=values)
  text('fixed', None, 'parameters held at values, as E=1.69,alpha=0.34')
  text('tied', None, 'parameters that follow another, as beta=alpha')
  text('bounds', None, 'bounds of parameters, as E=0:2,beta=0.1:')
  text('weights', None, 'column of weights of the rows')
  flags.DEFINE_enum('resample', 'cluster', ['cluster', 'row', 'residual', 'parametric'], 'what a bootstrap resamples: clusters, rows, '
                    'residuals, or draws of a fitted noise', flag_values=values)  # fmt: skip
  text(
    'profile', None, 'parameters, with commas, whose profile likelihood intervals are printed too; all: each free one'
  )
  text('accept', None, 'checks to let pass, with commas: duplicates, units, one-value')
  flags.DEFINE_integer('starts', 64, 'starts of the search', lower_bound=1, flag_values=values)
  text('out', None, 'JSON file of fits to write; fits of other laws in it are kept')


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints the fit."""
  if values.law == 'list':
    from analysis import laws

    for name in laws.names():
      law = laws.get(name)
      print(f'{name:<28} {law.formula}')
    return 0
  from scaling.errors import UserError

  if not args:
    raise UserError('scaling fit needs a table or a folder: scaling fit runs.csv --law=chinchilla')
  print(
    verbs.analysis().fit_verb(
      args[0],
      values.law,
      select=values.select,
      where=values.where,
      loss=values.loss,
      delta=values.delta,
      bootstrap=values.bootstrap,
      cluster=None if values.cluster.lower() == 'none' else values.cluster,
      rows=values.rows,
      drop=values.drop,
      seed=values.seed,
      out=values.out,
      fixed=values.fixed,
      tied=values.tied,
      bounds=values.bounds,
      weights=values.weights,
      resample=values.resample,
      profile=values.profile,
      starts=values.starts,
      accept=values.accept,
    )
  )
  return 0
