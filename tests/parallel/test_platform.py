"""Set-up of a process, each case in a process of its own."""

import os
import subprocess
import sys

import pytest

from scaling.parallel import platform


def run(code: str, **env: str) -> str:
  keep = {k: v for k, v in os.environ.items() if k not in ('JAX_PLATFORMS', 'XLA_FLAGS')}
  done = subprocess.run([sys.executable, '-c', code], env={**keep, **env}, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  return done.stdout + done.stderr


def test_a_cpu_machine_starts_quietly_and_caches_programs(tmp_path):
  code = (
    'from scaling.parallel import platform; platform.setup(); platform.setup()\n'
    'import jax; print(jax.jit(lambda x: x + 1)(1), jax.default_backend())'
  )
  if platform.platform() != 'cpu':
    pytest.skip('an accelerator is here')
  assert run(code, SCALING_CACHE=str(tmp_path)) == '2 cpu\n'  # nothing of libtpu, where that is installed
  (folder,) = (tmp_path / 'compiled').iterdir()
  assert folder.name.startswith('jaxlib-') and any(folder.iterdir())


def test_the_users_settings_stay():
  code = (
    'import os, jax\n'
    'jax.config.update("jax_default_matmul_precision", "highest")\n'
    'from scaling.parallel import platform; platform.setup(compile_cache=False)\n'
    'print(os.environ["XLA_FLAGS"], jax.config.jax_default_matmul_precision, jax.config.jax_platforms)'
  )
  flag = '--xla_gpu_enable_latency_hiding_scheduler=false'
  assert run(code, JAX_PLATFORMS='cuda', XLA_FLAGS=flag) == f'{flag} highest cuda\n'


def test_repeated_steps_do_not_fault_their_memory_in_again():
  code = """
import resource
from scaling.parallel import platform
kept = platform.keep_memory()
import jax, jax.numpy as jnp

@jax.jit
def f(x):
  y = jnp.outer(x, x)
  for _ in range(4):
    y = y @ y * 1e-3
  return y.sum()

x = jnp.ones(1000)
for _ in range(4):
  f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  f(x).block_until_ready()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
  kept, faults = run(code, JAX_PLATFORMS='cpu').split()
  if kept != 'True':
    pytest.skip('no mallopt here')
  assert int(faults) < 2000  # none or few were measured, and more than 30,000 without


def test_only_fully_sharded_programs_for_tpu_have_compiler_options():
  assert platform.compiler_options('tpu', 4) == platform.TPU_FULLY_SHARDED
  assert platform.compiler_options('tpu', 1) == platform.compiler_options('gpu', 8) == {}
