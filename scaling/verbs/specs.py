"""`scaling specs`: the specification curve, hundreds of fits over every defensible choice."""

from absl import flags

from scaling import verbs

USAGE = 'TABLE_OR_DIR [--laws=NAME,NAME] [--target=a|params|tokens_per_param] [--flops=C] [--out=DIR]'
SUMMARY = 'fits every combination of law, loss, window, exclusion and counting, and plots how far the answer moves'
DETAILS = """
The specification curve: one estimate with its interval per combination of choices that the table allows (law, loss and delta, window,
excluded points, counting of parameters and FLOPs, last or all evaluations, best or all learning rates). The target is the exponent a of
compute-optimal parameters, or the optimum at --flops. Writes specifications.csv, .svg and .png into --out.
"""
EXAMPLES = ('scaling specs out/quickstart', 'scaling specs runs.csv --target=tokens_per_param --flops=1e21 --out=specs')
ARGUMENTS = (1, 1)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string('laws', 'chinchilla,kaplan', 'laws, with commas', flag_values=values)
  flags.DEFINE_string('target', 'a', 'a, params or tokens_per_param', flag_values=values)
  flags.DEFINE_float('flops', None, 'the budget of the optimum', flag_values=values)
  flags.DEFINE_string('select', None, 'SQL select list that makes the columns from the table', flag_values=values)
  flags.DEFINE_string('out', None, 'folder for the table and the figure', flag_values=values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints how each choice moves the estimate."""
  import sys
  from pathlib import Path

  from analysis import specification, table

  analysis_verbs = verbs.analysis()
  frame = table.read(args[0], select=values.select)
  choices = specification.specifications(frame, values.laws.split(','))

  def progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
      print(f'\r{done} of {total} fits', end='\n' if done == total else '', file=sys.stderr)

  curve = specification.run(frame, choices, target=values.target, flops=values.flops, progress=progress)
  made = curve.rows.dropna(subset='estimate')
  low, middle, high = made['estimate'].quantile([0.025, 0.5, 0.975])
  print(f'{values.target}: median {middle:.4g}, 95% of {len(made)} specifications in [{low:.4g}, {high:.4g}]')
  if len(made) < len(curve.rows):
    print(f'{len(curve.rows) - len(made)} specifications could not be fitted; their reasons are in the table')
  print(analysis_verbs.text(curve.by_axis))
  if values.out:
    from analysis.figures import doubt, draw

    folder = Path(values.out)
    folder.mkdir(parents=True, exist_ok=True)
    curve.rows.to_csv(folder / 'specifications.csv', index=False)
    for path in (folder / 'specifications.csv', *draw.save(doubt.specification_plot(curve), folder, 'specifications')):
      print(f'wrote {path}')
  return 0
