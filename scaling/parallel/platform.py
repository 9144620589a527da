"""XLA flags, matmul precision, memory and the compile cache, in one place. Call `setup()` before any use of a device."""

import ctypes
import functools
import hashlib
import os
import pathlib
import sys

# XLA flags per platform; one that XLA_FLAGS already holds is left as the user set it.
FLAGS: dict[str, tuple[str, ...]] = {
  'cpu': (),
  # Overlaps collectives with compute, which fully sharded training lives by (jax.dev, "GPU performance tips").
  'gpu': ('--xla_gpu_enable_latency_hiding_scheduler=true',),
  'tpu': (),
}

# Options of a program for TPUs whose weights are fully sharded. XLA would multiply by the parts of a weight as they
# come round, and add up the whole result in main memory for each part: the programs of presets from 125M to 8B would
# move up to nine times the bytes (benchmarks/RESULTS.md). So weights are gathered first; the limit is in MiB.
TPU_FULLY_SHARDED = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': 1_000_000}

# What a float32 matmul means on each platform; those in bfloat16, the rule on accelerators, are not touched by it.
# A GPU would round float32 to TensorFloat-32. A TPU does round it to bfloat16, and keeps to that: its Pallas kernels
# are written for the default, so there float32 is a dtype of storage.
PRECISION = {'cpu': None, 'gpu': 'highest', 'tpu': None}


def setup(compile_cache: bool = True) -> None:
  """Sets XLA flags, matmul precision, memory behaviour and the compile cache of this process. Safe to call again.

  JAX_PLATFORMS, XLA_FLAGS and jax.config settings made by the user stay as they are.
  """
  import jax

  chosen = platform()
  if chosen == 'cpu':
    keep_memory()
    if not (jax.config.jax_platforms or os.environ.get('JAX_PLATFORMS')):
      # libtpu, installed to compile for TPUs that are not here, would be asked for devices first, and complain.
      jax.config.update('jax_platforms', 'cpu')
  flags = os.environ.get('XLA_FLAGS', '')
  missing = [flag for flag in FLAGS[chosen] if flag.split('=')[0] not in flags]
  if missing:
    os.environ['XLA_FLAGS'] = ' '.join([flags, *missing]).strip()
  if PRECISION[chosen] and jax.config.jax_default_matmul_precision is None:
    jax.config.update('jax_default_matmul_precision', PRECISION[chosen])
  if compile_cache:
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    jax.config.update('jax_compilation_cache_dir', str(directory))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)


def compiler_options(name: str, fsdp: int) -> dict[str, int]:
  """Options for `jax.jit` of a program for this platform, over `fsdp` devices that each hold a part of each weight."""
  return dict(TPU_FULLY_SHARDED) if name == 'tpu' and fsdp > 1 else {}


# Under /dev, what a machine with such chips shows.
_DEVICES = {'gpu': ('nvidia[0-9]*', 'kfd'), 'tpu': ('accel[0-9]*', 'vfio/[0-9]*')}


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': what JAX will run on, found without starting it."""
  import jax

  named = (jax.config.jax_platforms or os.environ.get('JAX_PLATFORMS') or '').split(',')[0]
  if named:
    return {'cuda': 'gpu', 'rocm': 'gpu'}.get(named, named if named in FLAGS else 'cpu')
  for name, patterns in _DEVICES.items():
    if any(next(pathlib.Path('/dev').glob(pattern), None) for pattern in patterns):
      return name
  return 'cpu'


def cache_directory() -> pathlib.Path:
  """The compile cache: under SCALING_CACHE (or ~/.cache/scaling), one folder per jaxlib version and CPU model."""
  import jaxlib

  root = pathlib.Path(os.environ.get('SCALING_CACHE') or pathlib.Path.home() / '.cache' / 'scaling')
  key = hashlib.sha256(_cpu_model().encode()).hexdigest()[:8]
  return root / 'compiled' / f'jaxlib-{jaxlib.__version__}-{key}'


def _cpu_model() -> str:
  """Names the CPU and its features: compiled code of one does not run well, or at all, on another."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
  except OSError:
    import platform as python_platform

    return python_platform.processor() or python_platform.machine()
  wanted = ('model name', 'flags', 'Features', 'CPU part')
  return '\n'.join(sorted({line for line in lines if line.startswith(wanted)}))


# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


@functools.cache
def keep_memory() -> bool:
  """Makes the C library keep freed memory for the next step; true where it could (Linux with glibc).

  XLA's CPU client takes its temporaries from malloc for each execution and frees them after it. By default such
  large blocks go back to the system at once, and the next step faults them in again page by page: a third of
  the time of a small model's step (benchmarks/RESULTS.md). The process then keeps its peak of memory.
  """
  if not sys.platform.startswith('linux'):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError):
    return False  # another C library
  settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 1 << 26, _M_ARENA_MAX: 1}
  accepted = [mallopt(name, value) for name, value in settings.items()]
  return all(accepted)
