"""Tables in a Markdown file come from records, and only what is between marks changes."""

import pytest
import synthetic_study

from analysis import readme
from scaling import cli
from scaling.errors import UserError


def test_fill_replaces_what_is_between_marks_and_is_idempotent(tmp_path):
  synthetic_study.write(tmp_path / 'study')
  path = tmp_path / 'README.md'
  path.write_text(
    'before\n\n<!-- table fits from study columns Law,Parameter,Estimate -->\nold\n<!-- end -->\n\nafter\n'
    '<!-- table optima from study -->\n<!-- end -->\n'
  )
  assert readme.fill(path) == 2
  text = path.read_text()
  assert text.startswith('before\n') and '\nafter\n' in text and 'old' not in text
  assert '| Law' in text and '| chinchilla | alpha' in text.replace('  ', ' ')
  assert '95%' not in text.split('after')[0]  # only the named columns
  readme.fill(path)
  assert path.read_text() == text


def test_mistakes_are_named(tmp_path):
  path = tmp_path / 'README.md'
  with pytest.raises(UserError, match='does not exist'):
    readme.fill(path)
  path.write_text('no marks')
  with pytest.raises(UserError, match='has no'):
    readme.fill(path)
  synthetic_study.write(tmp_path / 'study')
  path.write_text('<!-- table fit from study -->\n<!-- end -->\n')
  with pytest.raises(UserError, match="did you mean 'fits'"):
    readme.fill(path)
  path.write_text('<!-- table fits from study columns Laws -->\n<!-- end -->\n')
  with pytest.raises(UserError, match="did you mean 'Law'"):
    readme.fill(path)


def test_the_command_fills_the_named_file(tmp_path, capsys):
  synthetic_study.write(tmp_path / 'study')
  path = tmp_path / 'README.md'
  path.write_text('<!-- table fits from study columns Law -->\nold\n<!-- end -->\n')
  command = ['report', str(tmp_path / 'study'), '--figures=residuals', '--tables=fits', f'--readme={path}']
  assert cli.main(command) == 0
  assert f'{path}: tables filled from records: 1' in capsys.readouterr().out
  assert 'old' not in path.read_text() and '| chinchilla' in path.read_text()
