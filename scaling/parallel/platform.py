"""XLA flags, matmul precision and the compile cache, in one place. Call `setup()` before the first use of a device."""

import hashlib
import os
import pathlib


def _cpu_model() -> str:
  """Names the CPU and its features: compiled code of one does not run well, or at all, on another."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    import platform

    return platform.processor() or platform.machine()
  wanted = ('model name', 'flags', 'Features', 'CPU part')
  return '\n'.join(sorted({line for line in lines if line.startswith(wanted)}))


def cache_directory() -> pathlib.Path:
  """The compile cache: under SCALING_CACHE (or ~/.cache/scaling), one folder per jaxlib version and CPU model."""
  import jaxlib

  root = pathlib.Path(os.environ.get('SCALING_CACHE') or pathlib.Path.home() / '.cache' / 'scaling')
  key = hashlib.sha256(_cpu_model().encode()).hexdigest()[:8]
  return root / 'compiled' / f'jaxlib-{jaxlib.__version__}-{key}'


# Flags per platform. A flag that XLA_FLAGS already holds is left as the user set it.
FLAGS: dict[str, tuple[str, ...]] = {
  'cpu': (),
  'gpu': (),
  'tpu': (),
}


def setup(compile_cache: bool = True) -> None:
  """Sets XLA flags, matmul precision and the persistent compile cache for this process. Safe to call again."""
  import jax

  flags = os.environ.get('XLA_FLAGS', '')
  missing = [f for platform in _platforms() for f in FLAGS[platform] if f.split('=')[0] not in flags]
  if missing:
    os.environ['XLA_FLAGS'] = ' '.join([flags, *missing]).strip()
  if compile_cache:
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    jax.config.update('jax_compilation_cache_dir', str(directory))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)


def _platforms() -> list[str]:
  named = os.environ.get('JAX_PLATFORMS', '')
  known = {'cuda': 'gpu', 'rocm': 'gpu'}
  found = [known.get(name, name) for name in named.split(',') if name]
  return [name for name in found if name in FLAGS] or list(FLAGS)
