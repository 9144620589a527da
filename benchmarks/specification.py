"""How long a specification curve and a rolling backtest take: `python benchmarks/specification.py [TABLE_OR_DIR]`.

Default table: the committed quickstart. Prints wall-clock and processor seconds, compilation included, as a person waits for them.
Run it alone on the machine.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from analysis import backtest, specification, table


def timed(name: str, make) -> None:
  wall, processor = time.perf_counter(), time.process_time()
  count = make()
  wall, processor = time.perf_counter() - wall, time.process_time() - processor
  print(f'{name}: {count}: {wall:.1f} s, {processor:.1f} s of processor', flush=True)


def main(source: str) -> None:
  frame = table.read(source)

  def curve(**choices) -> str:
    rows = specification.run(frame, choices).rows
    fits = len(rows) // max(1, rows['flops'].nunique())
    return f'{fits} fits, {len(rows)} specifications, median {rows["estimate"].median():.4f}'

  def rolling() -> str:
    found = backtest.backtest(frame, ['chinchilla', 'kaplan'])
    return f'{int(found.summary["cuts"].sum())} fits, {len(found.rows)} predictions'

  timed('rolling backtest', rolling)
  timed('specification curve, last rows, one counting', lambda: curve(points=['final'], params=['params']))
  timed('specification curve, all choices', curve)


if __name__ == '__main__':
  main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parents[1] / 'experiments/results/quickstart'))
