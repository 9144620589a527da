"""The command line: verbs, and nothing else. Each verb is one file of `scaling/verbs`."""

import sys
from collections.abc import Sequence

from scaling import verbs
from scaling.errors import UserError, unknown


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb. Returns 0; 1 if a run failed; 2 for the user's mistake, told in one line; 75 or 130 if stopped."""
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    if not argv or argv[0] in verbs.HELP_FLAGS or argv == ['help']:
      print(verbs.overview())
      return 0
    if argv[0] == 'help':
      argv = [argv[1], '--help', *argv[2:]]
    name, *rest = argv
    if name == '--version':
      import importlib.metadata

      print(f'scaling {importlib.metadata.version("scaling")}')
      return 0
    if name not in verbs.NAMES:
      if name.startswith('-'):
        raise UserError(f'unknown flag {name!r}: flags follow a verb: scaling VERB {name}; see scaling --help')
      raise unknown('verb', name, verbs.NAMES)
    return verbs.call(name, rest)
  except UserError as error:
    print(f'scaling: {" ".join(str(error).splitlines())}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('scaling: stopped; repeat the command to resume', file=sys.stderr)
    return 130
  except BrokenPipeError:  # the reader of our output went away, as in `scaling status DIR | head`
    sys.stderr.close()
    return 0


if __name__ == '__main__':
  sys.exit(main())
