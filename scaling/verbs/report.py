"""`scaling report`: figures, tables and the page, from records."""

from absl import flags

from scaling import verbs

USAGE = 'DIR [--figures=NAME,...] [--tables=NAME,...] [--readme=FILE.md]'
SUMMARY = 'figures (SVG, PNG), tables (CSV, Markdown, LaTeX) and one self-contained HTML page'
DETAILS = """
DIR is the --out of scaling run, or a table of runs. Without names, all that the study asks for and the records allow is made;
--figures=list says what there is, and what each needs.

--readme=FILE.md then rewrites each <!-- table NAME from FOLDER --> ... <!-- end --> of the file from the records in FOLDER.
"""
EXAMPLES = ('scaling report out/quickstart', 'scaling report out/quickstart --figures=list')
ARGUMENTS = (1, 1)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string('figures', None, 'names with commas, or list', flag_values=values)
  flags.DEFINE_string('tables', None, 'names with commas, or list', flag_values=values)
  flags.DEFINE_string(
    'readme', None, 'Markdown file whose marked tables are then filled from records', flag_values=values
  )


def main(args: list[str], values: flags.FlagValues) -> int:
  """Writes the report and prints where it is; then fills the Markdown file that was named."""
  print(verbs.analysis().report_verb(args[0], figures=values.figures, tables=values.tables))
  if values.readme:
    from analysis import readme

    print(f'{values.readme}: tables filled from records: {readme.fill(values.readme)}')
  return 0
