"""Published data sets that fits are checked against, read where they are present and never copied.

The folder is $SCALING_SHARED_DATA, or `../shared/data` beside the repository. Each reader returns the rows that the publication
fitted, in this package's column names; its SOURCE.txt there tells origin, licence and reference values.
"""

import json
import os
from pathlib import Path

import numpy as np

OLMO_TASKS = ('mmlu_avg_test_5shot', 'hellaswag_val_5shot', 'arc_challenge_test_5shot', 'arc_easy_test_5shot',
              'piqa_val_5shot', 'csqa_val_5shot', 'socialiqa_val_5shot', 'openbookqa_test_5shot')  # fmt: skip
MULTI_POWER_TRAIN = ('cosine_24000', 'constant_24000', 'wsdcon_9')
MULTI_POWER_TEST = ('constant_72000', 'cosine_72000', 'wsd_20000_24000', 'wsdld_20000_24000', 'wsdcon_3', 'wsdcon_18')


def folder(name: str = '') -> Path | None:
  """The folder of a data set (or of all), None where it is not present."""
  root = os.environ.get('SCALING_SHARED_DATA')
  path = (Path(root) if root else Path(__file__).resolve().parents[2] / 'shared' / 'data') / name
  return path if path.is_dir() else None


def epoch_chinchilla(every: bool = False):
  """Besiroglu et al.'s reconstruction of Hoffmann et al.'s points; the five largest losses left out unless `every`."""
  import pandas as pd

  frame = pd.read_csv(folder('epoch_chinchilla') / 'svg_extracted_data.csv')
  frame = frame.rename(columns={'Model Size': 'params', 'Training FLOP': 'flops'})
  frame['tokens'] = frame.flops / (6 * frame.params)
  return frame if every else frame[frame.loss < frame.loss.nlargest(5).min()].reset_index(drop=True)


def gemstones(name: str, embeddings: bool = True):
  """One set of McLeish et al.; run_id, width, depth, params (less 50,304 x width without embeddings), tokens, loss."""
  import pandas as pd

  frame = pd.read_json(folder('gemstones') / f'wandb_df_for_fitting_{name}.jsonl', lines=True)
  frame = frame.rename(columns={'params_active_precise': 'params', 'final_loss': 'loss', 'run_name': 'run_id'})
  if not embeddings:
    frame['params'] = frame.params - 50304 * frame.width
  return frame


def gemstones_fits() -> list[dict]:
  """Their 42 parametric fits: {'key', 'set', 'embeddings', 'law', 'delta', 'objective', 'theta'}."""
  kinds = {'width_depth_parameters': 'width-depth-params', 'width_depth': 'width-depth', 'parameters': 'chinchilla'}
  found = []
  for key, fit in json.loads((folder('gemstones') / 'published_parameters.json').read_text()).items():
    if 'approach_3' not in key:
      continue
    head, _, rest = (
      key.rpartition('/')[2].removeprefix('approach_3_').removesuffix('.json').partition('_grid_search_0_')
    )
    e, c = fit['exponents']['0'], fit['coefficients']['0']
    floor = np.exp(fit['irreducible_error']['0'])
    if head == 'parameters':
      theta = {'E': floor, 'A': np.exp(c[0]), 'alpha': e[0], 'B': np.exp(c[1]), 'beta': e[1]}
    else:
      names = ('A', 'B', 'C', 'D') if head == 'width_depth_parameters' else ('A', 'B', 'D')
      powers = ('alpha', 'beta', 'gamma', 'delta') if len(names) == 4 else ('alpha', 'beta', 'delta')
      theta = {'E': floor, **dict(zip(names, np.exp(c), strict=True)), **dict(zip(powers, e, strict=True))}
    found.append({
      'key': key,
      'set': rest.removesuffix('_no_embeds'),
      'embeddings': not rest.endswith('_no_embeds'),
      'law': kinds[head],
      'delta': 1e-3 if 'delta-3' in key else 1e-4,
      'objective': fit['loss']['0'],
      'theta': {k: float(v) for k, v in theta.items()},
    })  # fmt: skip
  return found


def olmo_ladder_step1(task: str):
  """Bhagia et al.'s points of step 1 (mean of a run's last five evaluations): params, tokens, loss, run_id, model, mode.

  `task` is one of OLMO_TASKS (bits per byte of the right answer) or 'c4' (nats per token).
  """
  import pandas as pd

  if task == 'c4':
    frame = olmo_ladder_checkpoints()
    groups = frame.groupby('run_id', sort=False)
    last = groups.tail(5).groupby('run_id', sort=False)
    table = last.agg(
      params=('params', 'last'),
      tokens=('tokens', 'last'),
      loss=('c4', 'mean'),
      model=('model', 'last'),
      mode=('mode', 'last'),
    )
    return table.reset_index()
  points = json.loads((folder('olmo_ladder') / 'step1_points.json').read_text())[task]
  rows = [
    {'run_id': f'{model}-{length}', 'model': model, 'mode': p['mode'], 'params': n, 'tokens': d, 'loss': bpb}
    for model, p in points.items()
    if model != '_minimum_maximum'
    for n, d, bpb, length in zip(p['N'], p['D'], p['bpb'], p['length'], strict=True)
  ]
  return pd.DataFrame(rows)


def olmo_ladder_checkpoints():
  """All checkpoints: run_id, model, mode, params, tokens, c4 (nats), and <task>__bpb, <task>__acc."""
  import pandas as pd

  frame = pd.read_csv(folder('olmo_ladder') / 'ladder_checkpoints.csv')
  return frame.rename(columns={'run': 'run_id', 'N_nonemb': 'params', 'c4_ce': 'c4'})


def olmo_ladder_step2(task: str, loss: str = 'bpb'):
  """(train, target): loss and accuracy of checkpoints, averaged over five, the first tenth of each run left out.

  As the authors do, one point (loss 0, accuracy 1) is added to the train rows; target is the 13B model's last average.
  """
  import pandas as pd

  column = 'c4' if loss == 'c4' else f'{task}__bpb'
  frame = olmo_ladder_checkpoints()
  parts, target = [], None
  for run, rows in frame.groupby('run_id', sort=False):
    mode = rows['mode'].iloc[0]
    x, y = rows[column].to_numpy(), rows[f'{task}__acc'].to_numpy()
    if mode == 'train':
      skip = int(np.ceil(0.1 * len(x)))
      x, y = x[skip:], y[skip:]
    smooth = [pd.Series(a).rolling(5, min_periods=1).mean().to_numpy() for a in (x, y)]
    if mode == 'train':
      parts.append(pd.DataFrame({'run_id': run, 'loss': smooth[0], 'accuracy': smooth[1]}))
    elif run.startswith('peteish13'):
      target = {'loss': float(smooth[0][-1]), 'accuracy': float(smooth[1][-1])}
  parts.append(pd.DataFrame({'run_id': ['ideal'], 'loss': [0.0], 'accuracy': [1.0]}))
  return pd.concat(parts, ignore_index=True), target


def olmo_ladder_published(name: str):
  """One of their tables of predictions for the 13B model, such as 'step1_main', indexed by task."""
  import pandas as pd

  return pd.read_csv(folder('olmo_ladder') / f'published_{name}.csv').dropna().set_index('Task')


def datablations():
  """The 182 points of Muennighoff et al.: params, tokens, unique_tokens, loss (C4 validation, nats)."""
  import pandas as pd

  frame = pd.read_csv(folder('datablations') / 'fit_points_182.csv')
  return frame.rename(columns={'N': 'params', 'D': 'tokens', 'U': 'unique_tokens', 'name': 'run_id'})


DATABLATIONS_FIXED = {
  'A': float(np.exp(6.255414)), 'B': float(np.exp(7.3049974)), 'E': float(np.exp(0.6254804)), 'alpha': 0.3526596, 'beta': 0.3526596,
}  # fmt: skip


def gadre(dataset: str | None = None):
  """The 104 models of Gadre et al.: params, tokens, flops, dataset_name, loss_<set>, err_avg_subset and more."""
  import pandas as pd

  frame = pd.read_csv(folder('gadre_overtraining') / 'testbed_104_models.csv').rename(
    columns={'N': 'params', 'D': 'tokens'}
  )
  return frame if dataset is None else frame[frame.dataset_name == dataset]


def gadre_fit_rows(dataset: str):
  """(five rows of their loss law, six rows of their error law) for one training set: 'c4_original', 'rpj' or 'rw_original'."""
  frame = gadre(dataset)
  small = ['d=96_l=8_h=4', 'd=512_l=8_h=4', 'd=576_l=24_h=8', 'd=1024_l=24_h=8']
  base = frame[(frame.cc_mult == 1) & frame.model_name.isin(small)]
  over = frame[(frame.cc_mult == 16) & (frame.model_name == small[0])]
  large = frame[(frame.cc_mult == 1) & (frame.model_name == 'open_lm_1b')]
  import pandas as pd

  five = pd.concat([base, over])
  return five, pd.concat([five, large])


def multi_power(size: int):
  """(table, schedules) of Luo et al.'s loss curves of 25, 100 or 400 million parameters: curve, step, loss; learning rate per step."""
  import pandas as pd

  tables, schedules = [], {}
  for name in MULTI_POWER_TRAIN + MULTI_POWER_TEST:
    frame = pd.read_csv(folder('multi_power_law') / f'csv_{size}' / f'{name}.csv')
    if frame.step.max() == 24000:
      frame = frame[frame.step < 24000]
    tables.append(frame[['step', 'loss']].assign(curve=name))
    schedules[name] = _schedule(name)
  return pd.concat(tables, ignore_index=True), schedules


def _schedule(name: str, warmup: int = 2160, peak: float = 3e-4, end: float = 3e-5) -> np.ndarray:
  kind, *numbers = name.split('_')
  ramp = np.linspace(0, peak, warmup)
  if kind == 'wsdcon':
    return np.concatenate([ramp, np.full(8000 - warmup, peak), np.full(8000, int(numbers[0]) * 1e-5)])
  total = int(numbers[-1])
  after = np.arange(warmup, total)
  if kind == 'constant':
    return np.concatenate([ramp, np.full(total - warmup, peak)])
  if kind == 'cosine':
    return np.concatenate([ramp, end + 0.5 * (peak - end) * (1 + np.cos(np.pi * (after - warmup) / (total - warmup)))])
  start = int(numbers[0])
  part = (np.arange(start, total) - start) / (total - start)
  tail = peak ** (1 - part) * end**part if kind == 'wsd' else peak * (1 - part) + end * part
  return np.concatenate([ramp, np.full(start - warmup, peak), tail])


def nanochat() -> dict:
  """Karpathy's isoFLOP optima under three ways of counting parameters: {'flops': [4], rule: {'N', 'D', 'published_exponents'}}."""
  return json.loads((folder('nanochat_param_counting') / 'optima.json').read_text())
