"""Puts a study's tables into a Markdown file between markers, so that no number in it is typed by hand.

    <!-- table fits from experiments/results/quickstart columns Law,Parameter,Estimate -->
    (replaced)
    <!-- end -->

The folder is relative to the Markdown file. `columns`, headings of the table in order, may be left out.
"""

import re
import tempfile
from pathlib import Path

from analysis import context as contexts
from analysis import tables as registry
from scaling.errors import UserError, unknown

_MARK = re.compile(
  r'(?P<open><!-- table (?P<table>\S+) from (?P<folder>\S+)(?: columns (?P<columns>.+?))? -->\n).*?(?P<close><!-- end -->)',
  re.DOTALL,
)


def fill(path: str | Path) -> int:
  """Rewrites every marked table of the file from its records, and gives how many there are.

  Raises UserError for a file without marks, an unknown table, folder or column.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f'{path} does not exist: give a Markdown file with <!-- table NAME from FOLDER --> marks')
  text, count = _MARK.subn(lambda match: _filled(match, path.parent), path.read_text(encoding='utf-8'))
  if not count:
    raise UserError(f'{path} has no <!-- table NAME from FOLDER --> ... <!-- end --> marks')
  with tempfile.NamedTemporaryFile('w', dir=path.parent, encoding='utf-8', delete=False) as file:
    file.write(text)
  Path(file.name).chmod(path.stat().st_mode)
  Path(file.name).replace(path)
  return count


def _filled(match: re.Match, base: Path) -> str:
  made = registry.get(match['table']).table(contexts.load(base / match['folder']))
  if match['columns']:
    by_heading = {column.heading: column for column in made.columns}
    headings = [heading.strip() for heading in match['columns'].split(',')]
    for heading in headings:
      if heading not in by_heading:
        raise unknown(f'column of table {match["table"]!r}', heading, by_heading)
    made.columns = [by_heading[heading] for heading in headings]
  return f'{match["open"]}{_rows(made)}{match["close"]}'


def _rows(made: registry.Table) -> str:
  """The rows alone: the text around them is the file's own."""
  lines = [line for line in made.markdown().splitlines() if line.startswith('|')]
  return '\n'.join(lines) + '\n'
