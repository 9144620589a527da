"""What a sweep shows while it runs: a live table on a terminal, plain lines elsewhere."""

import collections
import time
from typing import Any

from scaling.sweep import plan, records, supervise, timing
from scaling.sweep.supervise import Job, Sweep

REFRESH_SECONDS = 0.5
WINDOW_SECONDS = 20.0  # over which tokens per second are averaged
SPARKS = '▁▂▃▄▅▆▇█'


class Meter:
  """Tokens per second over the last seconds, and the time that is left."""

  def __init__(self) -> None:
    self._seen: collections.deque[tuple[float, int]] = collections.deque()

  def tokens_per_second(self, sweep: Sweep) -> float:
    """Over the last `WINDOW_SECONDS`; call it regularly."""
    now, tokens = time.monotonic(), sum(supervise.progress(j) for j in sweep.jobs if j.status != 'waiting')
    self._seen.append((now, tokens))
    while now - self._seen[0][0] > WINDOW_SECONDS and len(self._seen) > 2:
      self._seen.popleft()
    (then, before) = self._seen[0]
    return max(0.0, (tokens - before) / (now - then)) if now - then > 1 else 0.0

  def seconds_left(self, sweep: Sweep) -> float:
    """By the plan's estimates, corrected by how the finished runs compared with theirs."""
    done = [job for job in sweep.of_status('done') if job.elapsed > 0]
    ratio = 1.0
    if done:
      ratio = sum(job.elapsed for job in done) / max(1e-9, sum(job.seconds for job in done))
    left = [job.seconds for job in sweep.of_status('waiting')]
    for job in sweep.of_status('running'):
      spent = time.monotonic() - job.began
      share = supervise.progress(job) / max(1, job.steps * job.batch_tokens)
      by_time = max(0.05 * job.seconds, job.seconds - spent / ratio)
      left.append(min(by_time, job.seconds * (1 - share)) if share else by_time)
    return timing.makespan(left, len(sweep.slots)) * ratio


class Plain:
  """One line for each run that ends, for logs and pipes."""

  def __init__(self, write: Any = None) -> None:
    self._write = write or (lambda text: print(text, flush=True))
    self._meter = Meter()
    self._rate = 0.0
    self._looked = 0.0

  def __enter__(self) -> 'Plain':
    return self

  def __exit__(self, *_: object) -> None:
    return

  def update(self, sweep: Sweep) -> None:
    """Called often; only keeps count."""
    if time.monotonic() - self._looked > 2:
      self._looked, self._rate = time.monotonic(), self._meter.tokens_per_second(sweep)

  def finished(self, sweep: Sweep, job: Job) -> None:
    """A run has ended."""
    self._rate = self._meter.tokens_per_second(sweep)
    self._write(finished_line(sweep, job, self._rate, self._meter.seconds_left(sweep)))

  def note(self, text: str) -> None:
    """Something that a reader of the log should know."""
    self._write(f'  note: {text}')


class Live(Plain):
  """A table that is drawn again and again: counts, speed, time left, and the runs in hand with their curves."""

  def __init__(self, console: Any) -> None:
    from rich.live import Live as RichLive

    self._live = RichLive(console=console, auto_refresh=False, transient=True)
    super().__init__(lambda text: self._live.console.print(text, markup=False, highlight=False))
    self._drawn = 0.0

  def __enter__(self) -> 'Live':
    self._live.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._live.stop()

  def update(self, sweep: Sweep) -> None:
    if time.monotonic() - self._drawn < REFRESH_SECONDS:
      return
    self._drawn = time.monotonic()
    self._rate = self._meter.tokens_per_second(sweep)
    self._live.update(self._draw(sweep), refresh=True)

  def _draw(self, sweep: Sweep) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    runs = Table.grid(padding=(0, 2))
    for job in sweep.of_status('running'):
      share = supervise.progress(job) / max(1, job.steps * job.batch_tokens)
      losses = [row.get('loss') for row in records.read_rows(job.run_dir / 'metrics.jsonl')]
      last = f'{losses[-1]:.3f}' if losses and isinstance(losses[-1], float) else ''
      runs.add_row(job.name, ProgressBar(1.0, share, width=24), f'{share:4.0%}', last, sparkline(losses))
    return Group(summary(sweep, self._rate, self._meter.seconds_left(sweep)), runs)


def view(console: Any = None) -> Plain:
  """The live table if the console is a terminal, plain lines otherwise."""
  from rich.console import Console

  console = console or Console()
  return Live(console) if console.is_terminal else Plain()


def summary(sweep: Sweep, tokens_per_second: float, seconds_left: float) -> str:
  """'5 done, 2 running, 17 waiting | 61k tokens/s | about 4 min 10 s left | 1.2 GB'."""
  count = collections.Counter(job.status for job in sweep.jobs)
  parts = [f'{count["done"]} done', f'{count["running"]} running', f'{count["waiting"]} waiting']
  parts += [f'{count[name]} {name}' for name in ('diverged', 'failed') if count[name]]
  return ' | '.join(
    [
      ', '.join(parts),
      f'{plan.count_text(tokens_per_second)} tokens/s',
      f'about {timing.duration(seconds_left)} left',
      plan.bytes_text(sweep.peak_bytes) + ' at most',
    ]
  )


def finished_line(sweep: Sweep, job: Job, tokens_per_second: float, seconds_left: float) -> str:
  """'[ 3/24] ladder-16k tokens=262144: loss 1.913 after 12 s | 61k tokens/s | about 4 min 10 s left'."""
  ended = len(sweep.of_status('done', 'diverged', 'failed'))
  width = len(str(len(sweep.jobs)))
  result = records.read_json(job.run_dir / 'result.json') or {}
  if job.status == 'failed':
    what = f'FAILED: {job.message}'
  elif job.status == 'diverged':
    what = f'diverged at step {result.get("diverged_step", result.get("step", "?"))}'
  else:
    loss = result.get('loss')
    what = f'loss {loss:.4f}' if isinstance(loss, float) else 'done'
    what += f' after {timing.duration(job.elapsed)}'
  line = f'[{ended:{width}}/{len(sweep.jobs)}] {job.name}: {what}'
  if sweep.active:
    line += f' | {plan.count_text(tokens_per_second)} tokens/s | about {timing.duration(seconds_left)} left'
  return line


def sparkline(values: list[Any], width: int = 16) -> str:
  """A curve in one line of text, scaled from its least to its greatest value; gaps where a value is not finite."""
  numbers = [v if isinstance(v, int | float) and v == v and abs(v) != float('inf') else None for v in values]
  if len(numbers) > width:
    numbers = [numbers[round(i * (len(numbers) - 1) / (width - 1))] for i in range(width)]
  finite = [v for v in numbers if v is not None]
  if not finite:
    return ' ' * len(numbers)
  low, span = min(finite), (max(finite) - min(finite)) or 1.0
  top = len(SPARKS) - 1
  return ''.join(' ' if v is None else SPARKS[round((v - low) / span * top)] for v in numbers)
