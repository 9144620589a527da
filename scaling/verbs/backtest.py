"""`scaling backtest`: fit below a cut, predict above it, for each cut; laws compared by how well they extrapolate."""

from absl import flags

from scaling import verbs

USAGE = 'TABLE_OR_DIR [--laws=NAME,NAME] [--by=flops] [--cuts=6] [--out=FILE.csv]'
SUMMARY = 'fits laws on all scales below a cut and scores their predictions above it, for each cut'
DETAILS = """
The table is read as by `scaling fit`; the last row of each run is used, held-out runs too, as each cut holds out its own. For each law
the errors of all predictions are summarised, with the share of runs inside their 95% intervals: near 95% is honest, far below is not.
"""
EXAMPLES = (
  'scaling backtest out/quickstart',
  'scaling backtest runs.csv --laws=chinchilla,kaplan --by=params --ahead=10 --out=backtest.csv',
)
ARGUMENTS = (1, 1)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string('laws', 'chinchilla,kaplan', 'laws to compare, with commas', flag_values=values)
  flags.DEFINE_string('by', 'flops', 'what the cuts are of: flops, params, tokens or any column', flag_values=values)
  flags.DEFINE_integer('cuts', 6, 'number of cuts', lower_bound=1, flag_values=values)
  flags.DEFINE_float('ahead', None, 'predict only up to this many times the cut', flag_values=values)
  flags.DEFINE_string('select', None, 'SQL select list that makes the columns from the table', flag_values=values)
  flags.DEFINE_string('out', None, 'CSV file for every prediction', flag_values=values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints the summary by law."""
  from analysis import backtest, table

  analysis_verbs = verbs.analysis()
  frame = table.read(args[0], select=values.select)
  found = backtest.backtest(frame, values.laws.split(','), by=values.by, cuts=values.cuts, ahead=values.ahead)
  print(analysis_verbs.text(found.summary))
  for message in found.messages:
    print(f'note: {message}')
  if values.out:
    found.rows.to_csv(values.out, index=False)
    print(f'{len(found.rows)} predictions in {values.out}')
  return 0
