"""Plans: equal cells counted once, finished ones skipped, costs by the ledger, times learned from results."""

import io
import json

import pytest

from scaling import config, ledger
from scaling.errors import UserError
from scaling.sweep import plan, records, timing
from scaling.sweep.grid import grid
from scaling.sweep.study import Study, largest_compute


@pytest.fixture
def study(tiny_run):
  """Two sizes times two budgets; one cell is listed twice."""
  base = tiny_run()
  base = config.replace(base, {'model.vocab': None, 'data.fingerprint': None})
  runs = grid(base, {('model.width', 'model.heads'): [(16, 2), (32, 4)], 'data.tokens': [4096, 8192]})
  return Study('tiny', [*runs, config.replace(runs[0], {'name': 'again'})], held_out=largest_compute(runs))


def finish(out, cell, seconds=1.0):
  records.write_json(
    out / 'runs' / cell.run_id / 'result.json',
    {'run_id': cell.run_id, 'status': 'done', 'step': cell.run.data.steps, 'loss': 2.0, 'seconds': seconds},
  )


def test_equal_cells_are_planned_once(study, tmp_path):
  made = plan.make(study, tmp_path, workers=2)
  assert len(made.cells) == 4 and made.duplicates == 1
  assert [cell.held_out for cell in made.cells] == [False, False, False, True]
  assert all(cell.run.model.vocab and cell.run.data.fingerprint for cell in made.cells), 'ids are of resolved runs'
  again = plan.make(study, tmp_path, workers=2)
  assert [cell.run_id for cell in again.cells] == [cell.run_id for cell in made.cells]
  assert not any(tmp_path.iterdir()), 'planning leaves nothing behind'


def test_what_is_done_is_skipped(study, tmp_path):
  first = plan.make(study, tmp_path, workers=2)
  finish(tmp_path, first.cells[0])
  made = plan.make(study, tmp_path, workers=2)
  assert [cell.run_id for cell in made.owed] == [cell.run_id for cell in first.cells[1:]]
  assert made.seconds < first.seconds


def test_json_has_the_promised_keys(study, tmp_path):
  made = plan.make(study, tmp_path, workers=2)
  finish(tmp_path, made.cells[0])
  told = json.loads(json.dumps(plan.to_json(plan.make(study, tmp_path, workers=2))))
  assert {'runs', 'flops_asked', 'flops_spent', 'flops_owed', 'seconds', 'memory_bytes'} <= set(told)
  flops = []
  for cell, run in zip(made.cells, told['runs'], strict=True):
    per_token = ledger.flops_per_token(cell.run.model, cell.run.data.sequence_length)
    flops.append(per_token.chinchilla * run['tokens'])
    assert run['run_id'] == cell.run_id and run['name'] == cell.name
    assert run['flops'] == run['flops_chinchilla'] == flops[-1]
    assert run['params_total'] == ledger.parameters(cell.run.model).total > run['params_non_embedding'] > 0
    assert run['memory_bytes'] > 0
  assert told['flops_spent'] == pytest.approx(sum(flops))
  assert told['flops_asked'] == pytest.approx(sum(flops) + flops[0])
  assert told['flops_owed'] == pytest.approx(sum(flops) - flops[0])
  assert told['shared'] == {'duplicates': 1, 'done': 1, 'shapes': 2}
  assert told['memory_bytes'] >= max(run['memory_bytes'] for run in told['runs'])


def test_the_table_for_people(study, tmp_path):
  from rich.console import Console

  console = Console(width=160, record=True, file=io.StringIO())
  for part in plan.table(plan.make(study, tmp_path, workers=2)):
    console.print(part)
  text = console.export_text()
  assert '1 repeated cells trained once' in text and '(held out)' in text and 'asked' in text


def test_all_held_out_is_refused(study, tmp_path):
  with pytest.raises(UserError, match='holds out all of its 4 runs'):
    plan.make(Study('tiny', study.runs, held_out=lambda run: True), tmp_path)


def test_rates_are_learned_from_results(tiny_run, tmp_path, monkeypatch):
  monkeypatch.setenv('SCALING_CACHE', str(tmp_path))
  true = timing.Rate(3e9, 2e-3, 0.0)
  runs = [tiny_run({'model.width': w, 'data.tokens': t}) for w in (16, 64, 256) for t in (4096, 65536)]
  learned = timing.rate([(run, {'step': run.data.steps, 'seconds': true.seconds(run)}) for run in runs])
  assert learned.source == '6 finished runs'
  assert learned.flops_per_second == pytest.approx(3e9, rel=1e-6) and learned.step_seconds == pytest.approx(
    2e-3, rel=1e-6
  )
  assert timing.rate([]).source.startswith('a default')
  timing.remember(learned)
  kept = timing.rate([])
  assert kept.source == 'earlier sweeps on this machine' and kept.flops_per_second == learned.flops_per_second


def test_odd_results_do_not_upset_the_rate(tiny_run):
  run = tiny_run()
  odd = [(run, {}), (run, {'seconds': float('nan'), 'step': 4}), (run, {'seconds': 0.0, 'step': 4})]
  same = [(run, {'seconds': 2.0, 'step': run.data.steps})] * 2
  assert timing.rate([*odd, *same]).seconds(run) == pytest.approx(2.0 + timing.DEFAULT_RUN_SECONDS)


def test_makespan_and_durations():
  assert timing.makespan([3, 3, 2, 2, 2], 2) == 7
  assert timing.makespan([], 2) == 0 and timing.makespan([5, 1], 8) == 5
  assert [timing.duration(s) for s in (0, 3.21, 75, 7300, 3e6)] == [
    '0 s',
    '3.2 s',
    '1 min 15 s',
    '2 h 01 min',
    '34.7 days',
  ]


@pytest.mark.parametrize('preset', ['ladder-4k', 'ladder-100m', 'gpt2', 'llama3.2-1b'])
def test_the_bound_on_memory_is_above_the_estimate(preset):
  run = config.replace(grid(config.Run(), {'model': preset})[0], {'data.sequence_length': 256})
  if run.model.vocab is None:
    run = config.replace(run, {'model.vocab': 257})
  cell = plan.Cell('', '', run, ledger.parameters(run.model), None, None, False, 0.0, 0.0)
  exact = ledger.memory(run, config.Execution(), {}, platform='cpu').total
  assert exact < plan.memory_bound(cell) < 12 * exact + timing.PROCESS_BYTES
