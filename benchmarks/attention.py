"""Attention on CPU, forward and backward: static blocks, `jax.nn.dot_product_attention`, and the plain reference.

    python benchmarks/attention.py

Float32, causal, heads of 32 and 64; the subjects take turns in one process. Prints milliseconds of the median call
(output and gradients of queries, keys and values); the last run is kept in benchmarks/RESULTS.md.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from scaling.parallel import kernels, platform

SHAPES = [(32, 128, 2, 32), (16, 256, 4, 32), (8, 256, 8, 32), (8, 512, 8, 64), (2, 1024, 8, 64)]  # b, t, h, d
SUBJECTS = {
  'blocks': lambda q, k, v: kernels.attention(q, k, v, implementation='blocks'),
  'dot_product_attention': lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
  'reference': lambda q, k, v: kernels.attention(q, k, v, implementation='reference'),
}


def both(attention):
  """Output and gradients of one attention, compiled."""

  @jax.jit
  def run(q, k, v, grad):
    out, pull = jax.vjp(attention, q, k, v)
    return out, *pull(grad)

  return run


def measure(shape: tuple[int, ...], seconds: float) -> dict[str, float]:
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4)]
  runs = {name: both(attention) for name, attention in SUBJECTS.items()}
  results = {name: jax.block_until_ready(run(*arrays)) for name, run in runs.items()}
  for name in SUBJECTS:
    for a, b in zip(results[name], results['reference'], strict=True):
      np.testing.assert_allclose(a, b, atol=1e-4)
  times, end = {name: [] for name in SUBJECTS}, time.perf_counter() + seconds
  while time.perf_counter() < end:
    for name, run in runs.items():
      for timed in (False, True):  # the first call finds the caches full of another subject's data
        began = time.perf_counter()
        jax.block_until_ready(run(*arrays))
        if timed:
          times[name].append(1e3 * (time.perf_counter() - began))
  return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--seconds', type=float, default=5.0, help='per shape')
  jax.config.update('jax_platforms', 'cpu')
  platform.setup(compile_cache=False)
  seconds = parser.parse_args().seconds
  print('milliseconds, forward and backward, float32, causal\n')
  print('| batch, time, heads, head size | ' + ' | '.join(SUBJECTS) + ' |')
  print('|---|' + '---|' * len(SUBJECTS))
  for shape in SHAPES:
    cells = [f'{t:.2f}' for t in measure(shape, seconds).values()]
    print('| ' + ' | '.join([', '.join(map(str, shape)), *cells]) + ' |', flush=True)


if __name__ == '__main__':
  main()
