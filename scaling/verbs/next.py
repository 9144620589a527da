"""`scaling next`: which runs to train next, by how much they would tell per FLOP, and when to stop."""

from absl import flags

from scaling import verbs
from scaling.errors import UserError

USAGE = 'FITS --at_params=N --at_tokens=D | --at_flops=C [--budget=FLOPS] [--tolerance=SD]'
SUMMARY = 'ranks the next runs by how much they reduce the variance of a target per FLOP, and says when to stop'
DETAILS = """
The target is the loss of a run (--at_params, --at_tokens) or the compute-optimal size at a budget (--at_flops). Candidates are a grid of
sizes and tokens (--params, --tokens as low,high), or the rows of a table (--candidates) with the law's columns, such as learning rate,
and their flops.
"""
EXAMPLES = (
  'scaling next out/quickstart --at_params=1e6 --at_tokens=1e8 --params=4e3,5e5 --tokens=5e5,2e7 --budget=1e14',
  'scaling next fits.json --at_flops=1e21 --candidates=cells.csv --tolerance=0.02',
)
ARGUMENTS = (1, 1)


def define(values: flags.FlagValues) -> None:
  """The flags."""

  def number(name: str, about: str) -> None:
    flags.DEFINE_float(name, None, about, flag_values=values)

  number('at_params', 'size of the run whose loss is the target')
  number('at_tokens', 'its tokens')
  number('at_flops', 'the budget whose optimal size is the target')
  number('budget', 'FLOPs to spend at most')
  number('tolerance', 'stop when the standard deviation of the target (of its log) is at or below this')
  flags.DEFINE_string('params', None, 'candidate sizes: low,high', flag_values=values)
  flags.DEFINE_string('tokens', None, 'candidate tokens: low,high', flag_values=values)
  flags.DEFINE_integer('points', 8, 'of the grid along each', lower_bound=1, flag_values=values)
  flags.DEFINE_string('candidates', None, 'table of candidate runs, in place of the grid', flag_values=values)
  flags.DEFINE_string('law', None, 'which fit of the file; the first if not given', flag_values=values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints the runs to make."""
  from analysis import next_run, table

  analysis_verbs = verbs.analysis()
  fit = analysis_verbs.load_fit(args[0], values.law)
  if values.candidates:
    candidates = table.read(values.candidates)
  elif values.params and values.tokens:
    ends = {name: analysis_verbs.numbers(name, getattr(values, name)) for name in ('params', 'tokens')}
    for name, pair in ends.items():
      if len(pair) != 2:
        raise UserError(f'--{name}={getattr(values, name)}: give low,high')
    candidates = next_run.grid(fit, tuple(ends['params']), tuple(ends['tokens']), values.points)
  else:
    raise UserError('scaling next needs candidates: --params=low,high --tokens=low,high, or --candidates=TABLE')
  if values.at_flops:
    made = next_run.plan(
      fit, candidates, target='log_params', flops=values.at_flops, budget=values.budget, tolerance=values.tolerance
    )
  else:
    at = {name: value for name, value in (('params', values.at_params), ('tokens', values.at_tokens)) if value}
    made = next_run.plan(fit, candidates, at=at, budget=values.budget, tolerance=values.tolerance)
  print(made.summary())
  return 0
