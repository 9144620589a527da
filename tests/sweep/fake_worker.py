"""A stand-in for the training worker: the same files and lines, no training, and mishaps on demand.

What goes wrong is asked for in RUN_DIR/mishaps: one word per attempt, and all is well after the last.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  for line in sys.stdin:
    run_dir = Path(line.strip())
    given = json.loads((run_dir / 'config.json').read_text())
    mishap = next_mishap(run_dir)
    (run_dir / 'progress.json').write_text('{"step": 0}')
    data, model = given['run']['data'], given['run']['model']
    steps = data['tokens'] // (data['batch_size'] * data['sequence_length'])
    with (run_dir / 'metrics.jsonl').open('a') as metrics:
      for step in (0, steps // 2, steps):
        if step == steps and mishap:
          metrics.flush()
          suffer(mishap, run_dir)
          mishap = mishap if mishap == 'diverge' else ''
        tokens = step * data['batch_size'] * data['sequence_length']
        loss = 1.0 + 3.0 * model['width'] ** -0.5 + 40.0 * (tokens + 4096) ** -0.5
        row = {'step': step, 'tokens': tokens, 'loss': loss, 'seconds': 0.1 * step / steps}
        metrics.write(json.dumps(row | {'flops_chinchilla': 6.0 * tokens, 'flops_kaplan': 5.0 * tokens}) + '\n')
    result = {'run_id': given['run_id'], 'status': 'done', 'step': steps, 'loss': loss, 'seconds': 0.1}
    if mishap == 'diverge':
      result |= {'status': 'diverged', 'diverged_step': steps - 1}
    (run_dir / 'result.json').write_text(json.dumps(result))
    print(json.dumps({'run_id': given['run_id'], 'status': result['status']}), flush=True)


def next_mishap(run_dir: Path) -> str:
  attempts = run_dir / 'attempts'
  attempt = len(attempts.read_text()) if attempts.exists() else 0
  attempts.write_text('x' * (attempt + 1))
  wanted = run_dir / 'mishaps'
  words = wanted.read_text().split() if wanted.exists() else []
  return words[attempt] if attempt < len(words) else ''


def suffer(mishap: str, run_dir: Path) -> None:
  if mishap == 'kill':
    os.kill(os.getpid(), signal.SIGKILL)
  elif mishap == 'segfault':
    os.kill(os.getpid(), signal.SIGSEGV)
  elif mishap == 'raise':
    raise RuntimeError('the network is down')
  elif mishap == 'preempt':
    sys.exit(75)
  elif mishap in ('oom', 'oom-report', 'mistake'):
    error = 'data.corpus is gone' if mishap == 'mistake' else 'RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes'
    kind = 'user' if mishap == 'mistake' else 'memory'
    (run_dir / 'failure.json').write_text(json.dumps({'error': error, 'kind': kind}))
    if mishap == 'oom':
      sys.exit(1)
    print(json.dumps({'run_id': run_dir.name, 'status': 'failed', 'error': error, 'kind': kind}), flush=True)
    main()
    sys.exit(0)
  elif mishap == 'disk':
    print(
      json.dumps({'run_id': run_dir.name, 'status': 'failed', 'error': 'no space left', 'kind': 'disk'}), flush=True
    )
    main()
    sys.exit(0)
  elif mishap in ('hang', 'slow'):
    time.sleep(600 if mishap == 'hang' else 3)


if __name__ == '__main__':
  main()
