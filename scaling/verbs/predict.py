"""`scaling predict`: what a fit says of runs that were not made."""

from absl import flags

from scaling import config, verbs

USAGE = 'FITS --flops=C | --params=N --tokens=D [--law=NAME]'
SUMMARY = 'loss, compute-optimal parameters and tokens by a fitted law, with intervals'
DETAILS = """
FITS is a fits.json, or the folder that holds one. --flops=C gives the compute-optimal N and D of C = 6 N D and the loss there;
--params=N --tokens=D gives the loss of that run; --flops with --params gives the cost of departing from the best size. Values may be
lists: --flops=1e20,1e21. Inputs of laws of other columns are given as --input name=value.

--register writes the prediction to a new file with date and hash; --score compares such a file with a table of runs made since.
"""
EXAMPLES = (
  'scaling predict out/quickstart --flops=1e18',
  'scaling predict fits.json --params=7e9 --tokens=140e9',
  "scaling predict fits.json --params=7e9 --tokens=140e9 --register=guess.json --note='before the run'",
)
ARGUMENTS = (1, 1)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  for name, about in (
    ('flops', 'training compute, or several with commas'),
    ('params', 'number of parameters, counted as in the fit'),
    ('tokens', 'training tokens'),
    ('law', 'which fit of the file; the first if not given'),
    ('register', 'file to write the prediction to, before the run is made'),
    ('score', 'table of runs to compare FITS, then a registered prediction, with'),
    ('note', 'text kept with a registered prediction'),
  ):
    flags.DEFINE_string(name, None, about, flag_values=values)
  flags.DEFINE_multi_string('input', None, 'name=value of another column that the law is of', flag_values=values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints the prediction."""
  print(
    verbs.analysis().predict_verb(
      args[0],
      law=values.law,
      flops=values.flops,
      params=values.params,
      tokens=values.tokens,
      inputs=dict(config.parse_override(text) for text in values.input or []),
      register=values.register,
      score=values.score,
      note=values.note or '',
    )
  )
  return 0
