"""`scaling status`: where a study stands."""

import json
import time

from absl import flags

USAGE = 'DIR [--watch] [--json]'
SUMMARY = 'what of a study is done, running, diverged, failed, owed; curves so far'
DETAILS = """
DIR is the --out of scaling run. Everything is read from the run directories, so it works for a sweep on this or another machine
that shares the folder, running or not. A run counts as running while a live process holds its lease.
"""
EXAMPLES = ('scaling status out/quickstart', 'scaling status out/quickstart --watch')
ARGUMENTS = (1, 1)


def define(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_boolean('watch', False, 'draw again and again until Ctrl-C', flag_values=values)
  flags.DEFINE_boolean('json', False, 'print one JSON list of runs instead of a table', flag_values=values)
  flags.DEFINE_float('every', 2.0, 'seconds between drawings', lower_bound=0.1, flag_values=values)


def main(args: list[str], values: flags.FlagValues) -> int:
  """Prints the table once, or until interrupted."""
  from scaling.sweep import status

  if values.json:
    print(json.dumps(status.read(args[0])))
    return 0
  from rich.console import Console

  console = Console()
  console = console if console.is_terminal else Console(width=140)
  if not values.watch:
    console.print(status.render(args[0]), highlight=False, markup=False)
    return 0
  from rich.live import Live

  try:
    with Live(status.render(args[0]), console=console, auto_refresh=False, screen=console.is_terminal) as live:
      while True:
        time.sleep(values.every)
        live.update(status.render(args[0]), refresh=True)
  except KeyboardInterrupt:
    return 0
