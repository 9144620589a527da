"""Study files: found by name or path, their mistakes told in one line, overrides put into every run."""

import pytest

from scaling.config import Run
from scaling.errors import UserError
from scaling.sweep import study
from scaling.sweep.grid import grid

HEAD = 'from scaling.config import Run\nfrom scaling.sweep.study import Study\n'


def write(folder, text):
  path = folder / 'mine.py'
  path.write_text(text)
  return str(path)


def test_named_studies_load():
  assert {'quickstart', 'smoke'} <= set(study.names())
  for name in study.names():
    made = study.load(name)
    assert made.name == name and made.runs
  quick = study.load('quickstart')
  sizes, budgets = {run.model for run in quick.runs}, {run.data.tokens for run in quick.runs}
  assert len(sizes) >= 6 and len(budgets) >= 4
  assert 0 < sum(map(quick.held_out, quick.runs)) < len(quick.runs) / 3


def test_a_study_by_path_may_import_its_neighbours(tmp_path):
  (tmp_path / 'neighbour_of_mine.py').write_text('SEEDS = [0, 1]\n')
  path = write(
    tmp_path,
    HEAD + 'from neighbour_of_mine import SEEDS\n'
    'def study():\n  return Study("", [Run(seed=s) for s in SEEDS], held_out=lambda run: run.seed == 1)\n',
  )
  made = study.load(path)
  assert made.name == 'mine' and [made.held_out(run) for run in made.runs] == [False, True]


def test_overrides_go_into_every_run_and_keep_what_is_held_out():
  runs = grid(Run(), {'data.tokens': [4096, 8192]})
  made = study.Study('s', runs, held_out=lambda run: run.data.tokens == 8192)
  changed = study.override(made, {'data.tokens': '16384', 'seed': '3'})
  assert [run.data.tokens for run in changed.runs] == [16384, 16384] and {run.seed for run in changed.runs} == {3}
  assert changed.runs[0].name == 'tokens=16384', 'a name does not tell what is no longer so'
  changed = study.override(made, {'seed': '3', 'execution.remat': 'full', 'model': 'ladder-4k'})
  assert [changed.held_out(run) for run in changed.runs] == [False, True]
  assert changed.execution.remat == 'full' and changed.runs[0].model.width == 16


def test_the_largest_compute_is_held_out():
  runs = grid(Run(), {'model': ['ladder-4k', 'ladder-16k'], 'data.tokens': [4096, 8192]})
  held = study.largest_compute(runs, 2)
  assert [held(run) for run in runs] == [False, False, True, True]


@pytest.mark.parametrize(
  'text, said',
  [
    ('x = 1\n', 'has no study() function'),
    ('def study(:\n', 'line 1: invalid syntax'),
    ('def study():\n  return 1 / 0\n', 'line 2: ZeroDivisionError: division by zero'),
    ('def study():\n  return 3\n', 'study() returned int, not a Study'),
    (HEAD + 'def study():\n  return Study("s", [])\n', "study 's' has no runs"),
    (HEAD + 'def study():\n  return Study("s", [Run(sede=1)])\n', "unexpected keyword argument 'sede'"),
    (HEAD + 'def study():\n  return Study("s", [Run()], counting="params")\n', "unknown study.counting 'params'"),
    (HEAD + 'def study():\n  return Study("s", ["a"])\n', "runs holds 'a'"),
  ],
)
def test_mistakes_in_a_study_file(tmp_path, text, said):
  with pytest.raises(UserError) as error:
    study.load(write(tmp_path, text))
  assert said in str(error.value) and '\n' not in str(error.value)


def test_names_that_are_not_there(tmp_path):
  with pytest.raises(UserError, match="unknown study 'quikstart': did you mean 'quickstart'"):
    study.load('quikstart')
  write(tmp_path, '')
  with pytest.raises(UserError, match=r"does not exist; did you mean '.*mine\.py'"):
    study.load(str(tmp_path / 'mne.py'))
