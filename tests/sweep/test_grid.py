"""Grids: order, names, functions of the run, pinned ids, and mistakes told in one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.config import Data, Model, Run
from scaling.errors import UserError
from scaling.models import presets
from scaling.sweep.grid import chain, grid, where, zipped

GOLDEN = Path(__file__).parents[1] / 'golden' / 'run_ids.json'


def small_grid():
  return grid(
    Run(),
    {
      'model': ['ladder-4k', 'ladder-16k'],
      'data.tokens': [2**18, 2**20],
      'optim.learning_rate': lambda run: 0.1 / run.model.width,
    },
  )


def test_every_combination_once_in_order():
  runs = small_grid()
  assert [(r.model, r.data.tokens) for r in runs] == [
    (presets.get(name), tokens) for name in ('ladder-4k', 'ladder-16k') for tokens in (2**18, 2**20)
  ]
  assert [r.name for r in runs][:2] == ['ladder-4k tokens=262144', 'ladder-4k tokens=1048576']


def test_a_function_sees_the_values_of_its_cell():
  for run in small_grid():
    assert run.optim.learning_rate == 0.1 / run.model.width


def test_functions_among_values_and_after_each_other():
  runs = grid(
    Run(),
    {
      'optim.learning_rate': [lambda run: 1e-3, lambda run: 1e-3 * run.seed + 2e-3],
      'optim.weight_decay': lambda run: run.optim.learning_rate * 100,
      'seed': [1, 2],
    },
  )
  assert [(r.seed, r.optim.learning_rate) for r in runs] == [(1, 1e-3), (2, 1e-3), (1, 3e-3), (2, 4e-3)]
  assert all(r.optim.weight_decay == 100 * r.optim.learning_rate for r in runs)


def test_paths_that_move_together_are_valid_only_together():
  runs = grid(Run(), {('model.width', 'model.heads'): [(15, 3), (22, 11)], 'model.positions': 'none'})
  assert [(r.model.width, r.model.heads) for r in runs] == [(15, 3), (22, 11)]
  same = zipped(Run(model=Model(positions='none')), {'model.width': [15, 22], 'model.heads': [3, 11]})
  assert [r.run_id for r in same] == [r.run_id for r in runs]


def test_filter_and_chain():
  runs = small_grid()
  few = where(runs, lambda run: run.data.tokens == 2**18)
  assert len(few) == 2
  again = grid(Run(name='again'), {'seed': [0, 1]})
  assert [r.run_id for r in chain(runs, few, again, again)] == [r.run_id for r in (*runs, *again)]
  assert len(grid(Run(), {'seed': range(5)}, where=lambda run: run.seed % 2 == 0)) == 3


@given(
  st.lists(st.integers(0, 50), min_size=1, unique=True),
  st.lists(st.sampled_from([1e-3, 2e-3, 5e-3]), min_size=1, unique=True),
)
def test_ids_are_one_to_one_with_cells(seeds, rates):
  runs = grid(Run(), {'seed': seeds, 'optim.learning_rate': rates})
  assert len({r.run_id for r in runs}) == len(runs) == len(seeds) * len(rates)


def test_ids_are_those_of_before():
  """Ids name what is on users' disks: a change here orphans their finished runs. Change them only knowingly."""
  data = Data(fingerprint='0123456789abcdef')
  runs = {
    'default': Run(),
    'resolved': Run(data=data, model=Model(vocab=257)),
    'seed': Run(data=data, model=Model(vocab=257), seed=1),
    **{run.name: run for run in small_grid()},
  }
  assert {name: run.run_id for name, run in runs.items()} == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(
  'axes, said',
  [
    ({'optim.learning_rte': [1e-3]}, "unknown field 'optim.learning_rte': did you mean 'optim.learning_rate'"),
    ({'model': ['ladder-4q']}, 'ladder-16k'),
    ({'model': ['gpt-2']}, "did you mean 'gpt2'"),
    ({'seed': []}, "axis 'seed' has no values"),
    ({('seed', 'data.tokens'): [(1, 2048, 3)]}, 'moves 2 paths together'),
    ({'data.tokens': ['many']}, "data.tokens='many': it must be a whole number"),
    ({'data.tokens': [12]}, 'data.tokens=12 is fewer than one batch'),
    ({'model.width': [30]}, 'model.heads=4 does not divide model.width=30'),
  ],
)
def test_mistakes_name_the_axis(axes, said):
  with pytest.raises(UserError) as error:
    grid(Run(), axes)
  assert said in str(error.value) and '\n' not in str(error.value)


def test_zipped_lists_of_unlike_length():
  with pytest.raises(UserError, match=r'seed has 2, data.tokens has 1'):
    zipped(Run(), {'seed': [0, 1], 'data.tokens': [4096]})
