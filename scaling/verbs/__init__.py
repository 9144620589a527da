"""The verbs of the command line. A verb is a module with USAGE, SUMMARY, DETAILS, EXAMPLES, `define` and `main`."""

import importlib
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from absl import flags

from scaling import config
from scaling.errors import UserError, unknown

NAMES = (
  'train', 'plan', 'run', 'status', 'fit', 'predict', 'report', 'compare', 'backtest', 'specs', 'next', 'compile', 'doctor',
)  # fmt: skip
METAVARS = {'set': 'path=value', 'input': 'name=value', 'select': 'SQL', 'where': 'SQL'}  # others: the flag's name
HELP_FLAGS = ('--help', '-h', '-help', '--helpfull', '--helpshort')
WIDTH = 100


def module(name: str) -> ModuleType:
  """The module of a verb; importing it is quick, as what it needs is imported when it is called."""
  return importlib.import_module(f'scaling.verbs.{name}')


def call(name: str, argv: Sequence[str]) -> int:
  """Reads a verb's flags and arguments, and runs it. Raises UserError for those it does not take."""
  verb = module(name)
  values = flags.FlagValues()
  verb.define(values)
  before_dashes = argv[: argv.index('--')] if '--' in argv else argv
  if any(word in HELP_FLAGS for word in before_dashes):
    print(help_text(name, verb, values))
    return 0
  args = parse(name, values, argv)
  most = getattr(verb, 'ARGUMENTS', (0, 0))
  overrides = 'set' in values
  if overrides:  # `--set a=1 b=2`: words with an equals sign behind the arguments are overrides too
    plain = [word for i, word in enumerate(args) if i < most[0] or '=' not in word]
    values['set'].value = [*(values['set'].value or []), *(word for word in args if word not in plain)]
    args = plain
  if not most[0] <= len(args) <= most[1]:
    given = 'none' if not args else ' '.join(map(repr, args))
    raise UserError(
      f'scaling {name} takes {verb.USAGE.split(" [")[0]!r}, and was given {given}: see scaling {name} --help'
    )
  return verb.main(args, values) or 0


def parse(name: str, values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
  """Puts flags into `values` and returns the other words; '--flag=value' and '--flag value' are both taken."""
  values.set_gnu_getopt(True)  # flags may follow arguments
  try:
    return values([f'scaling {name}', *argv])[1:]
  except flags.UnrecognizedFlagError as error:
    raise unknown(f'flag of scaling {name}', f'--{error.flagname}', [f'--{flag}' for flag in values]) from None
  except flags.Error as error:
    raise UserError(f'scaling {name}: {" ".join(str(error).split())}') from None


def overrides(values: flags.FlagValues) -> dict[str, str]:
  """The `--set path=value` of a command line. Raises UserError for an unknown path."""
  out = dict(config.parse_override(text) for text in values.set or [])
  known = [*config.paths(config.Run), *(f'execution.{path}' for path in config.paths(config.Execution))]
  for path in out:
    if path not in known:
      raise unknown('field', path, known)
  return out


def define_set(values: flags.FlagValues) -> None:
  """Adds `--set`."""
  flags.DEFINE_multi_string(
    'set', None, 'path=value, put into the config; may be repeated. Paths: model.*, data.*, optim.*, seed, evaluations, '
    'and execution.* (where and how it runs). Example: --set optim.learning_rate=3e-3 --set data.tokens=1e6',
    flag_values=values,
  )  # fmt: skip


def default_out(study: Any) -> str:
  """Where a study's results go if `--out` is not given."""
  return f'out/{study.name}'


def analysis() -> ModuleType:
  """The verbs of analysis. Fits are small and need float64, so that jax stays on the CPU and takes no device for them."""
  import os

  import jax

  if not os.environ.get('JAX_PLATFORMS'):
    jax.config.update('jax_platforms', 'cpu')
  return importlib.import_module('analysis.verbs')


def overview() -> str:
  """What `scaling --help` prints."""
  lines = [
    'scaling: plan a grid of trainings, train it, fit scaling laws with intervals, check them on held-out runs.',
    '',
    'usage: scaling VERB [arguments] [--flag=value ...]     (or: python -m scaling VERB ...)',
    '',
    'verbs:',
  ]
  for name in NAMES:
    verb = module(name)
    lines += textwrap.wrap(verb.SUMMARY, WIDTH, initial_indent=f'  {name:<9}', subsequent_indent=' ' * 11)
  lines += [
    '',
    'A STUDY is a name in experiments/ (quickstart) or a path to a Python file with a study() function.',
    'scaling VERB --help lists the flags of a verb; scaling --version prints the version.',
    '',
    'begin with:',
    '  scaling plan quickstart          what would be trained, and at what cost',
    '  scaling run quickstart           train it, fit the laws, write the report; safe to repeat',
    '  scaling predict out/quickstart/fits.json --flops=1e18',
    '',
    'exit status: 0 done; 1 a run failed; 2 a mistake in the command, config, study or table (told in one line);',
    '             75 or 130 stopped by a signal, to be resumed by the same command.',
  ]
  return '\n'.join(lines)


def help_text(name: str, verb: ModuleType, values: flags.FlagValues) -> str:
  """What `scaling VERB --help` prints: usage, details, flags with defaults, examples."""
  lines = [f'usage: scaling {name} {verb.USAGE}'.rstrip(), '']
  for paragraph in [verb.SUMMARY, *getattr(verb, 'DETAILS', '').strip().split('\n\n')]:
    if paragraph:
      lines += [*textwrap.wrap(' '.join(paragraph.split()), WIDTH), '']
  own = [values[flag] for flag in values if flag not in ('help', 'helpfull', 'helpshort', 'helpxml')]
  lines.append('flags:' if own else 'flags: none')
  for flag in sorted(own, key=lambda f: f.name):
    if flag.boolean:
      head = f'  --[no]{flag.name}'
    elif getattr(flag.parser, 'enum_values', None):
      head = f'  --{flag.name}={"|".join(flag.parser.enum_values)}'
    else:
      head = f'  --{flag.name}={METAVARS.get(flag.name, flag.name.upper())}'
    text = ' '.join(flag.help.split()).removesuffix('; repeat this option to specify a list of values')
    if flag.default not in (None, '', [], False):
      shown = 'true' if flag.default is True else flag.default
      text += f' (default: {shown})'
    lines.append(head)
    lines += textwrap.wrap(text, WIDTH, initial_indent='      ', subsequent_indent='      ')
  examples = getattr(verb, 'EXAMPLES', ())
  if examples:
    lines += ['', 'examples:', *(f'  {example}' for example in examples)]
  return '\n'.join(lines)
