"""What a study would train, at what cost, and what of it is done already. Trains nothing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling import config, ledger
from scaling.config import Execution, Run
from scaling.errors import UserError
from scaling.sweep import records, timing
from scaling.sweep.engines import local
from scaling.sweep.study import Study


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a study, resolved, with its cost."""

  run_id: str
  name: str
  run: Run
  parameters: ledger.Parameters
  flops: ledger.Flops  # of the whole run, not per token
  state: records.State
  held_out: bool
  seconds: float  # estimated, for what is left of it
  seconds_whole: float  # estimated, from its first step to its last

  @property
  def shape(self) -> str:
    """Runs of equal shape compile to the same programs."""
    run = self.run
    return config.canonical_json([config.to_dict(run.model), run.data.batch_size, run.data.sequence_length])

  def count(self, column: str) -> int:
    """A `params_*` column."""
    return getattr(self.parameters, column.removeprefix('params_'))

  def compute(self, column: str) -> float:
    """A `flops_*` column."""
    return getattr(self.flops, column.removeprefix('flops_'))


@dataclasses.dataclass(frozen=True)
class Plan:
  """The cells of a study without duplicates, in the study's order."""

  study: Study
  out_dir: Path
  cells: tuple[Cell, ...]
  duplicates: int  # cells that the study lists again
  asked: Mapping[str, float]  # FLOPs of all cells, duplicates included, by convention
  rate: timing.Rate
  workers: int

  @property
  def owed(self) -> list[Cell]:
    """The cells that have no result yet."""
    return [cell for cell in self.cells if not cell.state.finished]

  def flops(self, column: str, cells: Any = None) -> float:
    """FLOPs of some cells, by default all."""
    return sum(cell.compute(column) for cell in (self.cells if cells is None else cells))

  @property
  def seconds(self) -> float:
    """Estimated wall time of what is owed, on this plan's workers."""
    return timing.makespan([cell.seconds for cell in self.owed], self.workers)

  def memory(self, cell: Cell) -> int:
    """Bytes that one worker takes for this cell: its process, and the training state and activations."""
    return timing.PROCESS_BYTES + _step_bytes(cell, self.study.execution)

  @property
  def memory_bytes(self) -> int:
    """Bytes of all workers together, when those with the largest runs work side by side."""
    largest = sorted((self.memory(cell) for cell in self.cells), reverse=True)
    return sum(largest[: self.workers])


def make(study: Study, out_dir: Path, workers: int | None = None) -> Plan:
  """Resolves each run, drops duplicates by content, and looks up in `out_dir` what is done.

  Args:
    study: the study.
    out_dir: the folder of `scaling run --out`; need not exist.
    workers: processes side by side; by default one per core or device.

  Raises:
    UserError: what is wrong with the corpus, tokenizer or shapes, as found without training.
  """
  from scaling import data

  workers = workers or local.worker_count()
  chosen: dict[str, tuple[Run, bool]] = {}
  asked = dict.fromkeys(('kaplan', 'chinchilla', 'exact', 'exact_causal'), 0.0)
  duplicates = 0
  for run in study.runs:
    held_out = bool(study.held_out(run))
    run = data.resolve(run)
    for key, value in _flops(run).to_dict().items():
      asked[key] += value
    if run.run_id in chosen:
      duplicates += 1
      continue
    chosen[run.run_id] = (run, held_out)
  if all(held_out for _, held_out in chosen.values()):
    raise UserError(f'study {study.name!r} holds out all of its {len(chosen)} runs: nothing is left to fit a law on')

  states = {run_id: records.state(out_dir / 'runs' / run_id, run.data.steps) for run_id, (run, _) in chosen.items()}
  finished = [(chosen[i][0], s.result) for i, s in states.items() if s.finished and s.result]
  rate = timing.rate(finished)
  cells = []
  for run_id, (run, held_out) in chosen.items():
    whole = rate.seconds(run)
    state = states[run_id]
    left = 0.0 if state.finished else whole * (1 - min(state.step / run.data.steps, 1))
    cells.append(
      Cell(
        run_id=run_id,
        name=run.name or run_id,
        run=run,
        parameters=ledger.parameters(run.model),
        flops=_flops(run),
        state=state,
        held_out=held_out,
        seconds=left,
        seconds_whole=whole,
      )
    )
  return Plan(study, out_dir, tuple(cells), duplicates, asked, rate, workers)


def to_json(plan: Plan) -> dict[str, Any]:
  """What `scaling plan --json` prints.

  `flops_asked` counts every cell that the study lists; `flops_spent` each distinct one once; `flops_owed` those not
  done yet; `seconds` is the estimated wall time of the latter. FLOPs are in the study's convention, and in all
  conventions per run. Memory is in bytes: per worker for a run, of all workers together at the top.
  """
  study = plan.study
  runs = []
  for cell in plan.cells:
    runs.append(
      {
        'run_id': cell.run_id,
        'name': cell.name,
        'status': cell.state.status,
        'held_out': cell.held_out,
        **{f'params_{key}': value for key, value in cell.parameters.to_dict().items()},
        'tokens': cell.run.data.trained_tokens,
        'steps': cell.run.data.steps,
        'flops': cell.compute(study.flops),
        **{f'flops_{key}': value for key, value in cell.flops.to_dict().items()},
        'layers': cell.run.model.layers,
        'width': cell.run.model.width,
        'heads': cell.run.model.heads,
        'learning_rate': cell.run.optim.learning_rate,
        'batch_size': cell.run.data.batch_size,
        'sequence_length': cell.run.data.sequence_length,
        'seconds': cell.seconds,
        'memory_bytes': plan.memory(cell),
      }
    )
  return {
    'study': study.name,
    'out': str(plan.out_dir),
    'counting': study.counting,
    'flops_convention': study.flops,
    'runs': runs,
    'flops_asked': plan.asked[study.flops.removeprefix('flops_')],
    'flops_spent': plan.flops(study.flops),
    'flops_owed': plan.flops(study.flops, plan.owed),
    'seconds': plan.seconds,
    'seconds_from': plan.rate.source,
    'memory_bytes': plan.memory_bytes,
    'workers': plan.workers,
    'shared': {
      'duplicates': plan.duplicates,
      'done': len(plan.cells) - len(plan.owed),
      'shapes': len({cell.shape for cell in plan.cells}),
    },
  }


def table(plan: Plan) -> list[Any]:
  """The plan for people: rich renderables, a table of runs and lines of totals."""
  from rich.table import Table

  runs = Table(title=f'{plan.study.name}: {len(plan.cells)} runs', title_justify='left', header_style='bold')
  runs.add_column('run')
  for head in ('N non-emb', 'N total', 'layers x width', 'tokens', 'FLOPs', 'lr', 'memory', 'time'):
    runs.add_column(head, justify='right')
  runs.add_column('state')
  for cell in plan.cells:
    model = cell.run.model
    runs.add_row(
      cell.name + (' (held out)' if cell.held_out else ''),
      count_text(cell.parameters.non_embedding),
      count_text(cell.parameters.total),
      f'{model.layers} x {model.width}',
      count_text(cell.run.data.trained_tokens),
      f'{cell.compute(plan.study.flops):.2e}',
      f'{cell.run.optim.learning_rate:.3g}',
      bytes_text(plan.memory(cell)),
      timing.duration(cell.seconds),
      cell.state.status,
    )
  column = plan.study.flops
  done = len(plan.cells) - len(plan.owed)
  lines = [
    f'FLOPs ({column.removeprefix("flops_")}): asked {plan.asked[column.removeprefix("flops_")]:.3g}, '
    f'to spend {plan.flops(column):.3g}, still owed {plan.flops(column, plan.owed):.3g}',
    f'shared: {plan.duplicates} repeated cells trained once, {done} runs done already, '
    f'{len({c.shape for c in plan.cells})} shapes compiled for {len(plan.cells)} runs; '
    'equal schedules and lanes are not shared yet',
    f'{plan.workers} worker{"s" * (plan.workers != 1)}, about {bytes_text(plan.memory_bytes)} of memory, '
    f'about {timing.duration(plan.seconds)} for what is owed (by {plan.rate.source})',
  ]
  return [runs, *lines]


def count_text(value: float) -> str:
  """1234567 -> '1.23M'."""
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.3g}{unit}'
  return f'{value:g}'


def bytes_text(value: float) -> str:
  """Bytes in MB or GB of 1000."""
  return f'{value / 1e9:.2f} GB' if value >= 1e9 else f'{value / 1e6:.0f} MB'


def _flops(run: Run) -> ledger.Flops:
  per_token = ledger.flops_per_token(run.model, run.data.sequence_length)
  tokens = run.data.trained_tokens
  return ledger.Flops(**{key: value * tokens for key, value in per_token.to_dict().items()})


def memory_bound(cell: Cell) -> int:
  """Bytes of one worker at a cell, certainly enough, by arithmetic alone; `Plan.memory` is nearer and slower."""
  model, data = cell.run.model, cell.run.data
  per_token = model.layers * (48 * model.width + 12 * model.mlp_size + 6 * model.heads * data.sequence_length)
  floats = 8 * cell.parameters.total + data.batch_tokens * (per_token + 6 * model.vocab)
  return timing.PROCESS_BYTES + 4 * floats


def _step_bytes(cell: Cell, execution: Execution) -> int:
  """Bytes of state and activations of one training step; one answer per shape."""
  key = (cell.shape, execution)
  if key not in _bytes_of_shape:
    # The platform is named, as asking jax for it would start its backend in this process and take the devices.
    _bytes_of_shape[key] = int(ledger.memory(cell.run, execution, {}, platform=local.platform()).total)
  return _bytes_of_shape[key]


_bytes_of_shape: dict[tuple[str, Execution], int] = {}
