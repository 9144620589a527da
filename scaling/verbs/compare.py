"""`scaling compare`: two recipes' laws against each other."""

from absl import flags

from scaling import verbs
from scaling.errors import UserError

USAGE = 'FITS_A FITS_B --flops=C,C,... [--law=NAME]'
SUMMARY = 'gap in loss between two fitted recipes against compute, where they cross, and the compute multiplier'
DETAILS = """
Both are files written by `scaling fit` or folders of studies, on the same evaluation set and with params counted alike. Each recipe is
taken at its own compute-optimal split of the budget. The multiplier is the compute that B needs for the loss of A, over A's.
"""
EXAMPLES = ('scaling compare out/baseline out/muon --flops=1e15,1e16,1e18',)
ARGUMENTS = (2, 2)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_list('flops', None, 'budgets with commas, at least two', flag_values=values)
  flags.DEFINE_string('law', None, 'which fit of the files; the first if not given', flag_values=values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints the comparison."""
  from analysis import compare

  analysis_verbs = verbs.analysis()
  fits = [analysis_verbs.load_fit(path, values.law) for path in args]
  if not values.flops:
    raise UserError('scaling compare needs budgets: --flops=1e18,1e20,1e22')
  print(compare.compare(*fits, analysis_verbs.numbers('flops', ','.join(values.flops)), tuple(args)).summary())
  return 0
