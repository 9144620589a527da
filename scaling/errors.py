"""User mistakes: one clear line each, never a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """A mistake in a config, table, path or name; the command line prints it and exits 2.

  The message is one line that names what was given and what would be right.
  """


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
  """The error for a name that is not known, with the nearest known names."""
  known = sorted(str(k) for k in known)
  near = difflib.get_close_matches(str(given), known, n=3, cutoff=0.5)
  if near:
    hint = 'did you mean ' + ' or '.join(repr(n) for n in near) + '?'
  elif known:
    hint = 'known: ' + ', '.join(known)
  else:
    hint = 'none is known here'
  return UserError(f'unknown {kind} {given!r}: {hint}')
