"""What all command lines share: exit codes, one-line errors, config files."""

import contextlib
import functools
import importlib.machinery
import importlib.util
import logging as python_logging
import os
import re
import sys
import traceback

from absl import app
from absl import flags
from absl import logging
from experiments import hosts
from ml_collections import ConfigDict
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import filenames
from rnnzoo.training import memory
from rnnzoo.training.processes import peers
from rnnzoo.training.processes import signals

flags.disclaim_key_flags()  # Flags belong to the modules that call this one.


class _PathParser(flags.ArgumentParser):
  """Makes the names of files absolute; an empty one stays empty."""

  def parse(self, argument):
    return filenames.absolute(argument) if argument else argument

  def flag_type(self):
    return 'path'


def define_path(name, default, help_text):
  """Defines a flag that is the name of a file or a directory, `~` allowed."""
  return flags.DEFINE(
      _PathParser(), name, default, help_text,
      serializer=flags.ArgumentSerializer(),
  )


def run(main):
  """Runs an absl `main`; what a user can put right is one line on stderr.

  The exit code is then 2 for a command line that is wrong in itself and 1 for
  everything else. A run that a signal stopped has the code a shell would give.
  """
  logging.set_verbosity(logging.INFO)
  # JAX tells which accelerators it did not find, and the like; nobody asked.
  python_logging.getLogger('jax').setLevel(python_logging.WARNING)

  def guarded(argv):
    with (
        peers.leaving_on_errors(), _readable_errors(), memory.readable_errors()
    ):
      main(argv)
      sys.stdout.flush()
      peers.finish(0)

  app.run(guarded, flags_parser=_parse_flags)


def check_usage(argv, **required):
  """Raises `app.UsageError` (exit code 2) on stray words and missing flags."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {" ".join(argv[1:])}')
  for name, value in required.items():
    if not value:
      raise app.UsageError(f'--{name} is required.')


def layers_of(config_filename):
  """Returns the `LAYERS` that a config file exports, or `None`.

  Raises:
    UserError: If the file is missing or cannot be run, or its `LAYERS` are
      no layers by name.
  """
  if not config_filename:
    return None
  path = _path(config_filename)
  layers = getattr(_load_module(path), 'LAYERS', None)
  if layers is None:
    return None
  if not isinstance(layers, dict) or not all(
      isinstance(name, str) and callable(make) for name, make in layers.items()
  ):
    raise errors.UserValueError(
        f'LAYERS of {path} must be a dictionary of layers (classes) by name, '
        f'got {fields.shown(layers)}.'
    )
  return layers


@contextlib.contextmanager
def _readable_errors():
  """Prints a line instead of a traceback, where the user is the one to act."""
  try:
    yield
  except (app.UsageError, flags.Error) as error:
    _exit(2, f'Error: {error}')
  except errors.UserError as error:
    _exit(1, f'Error: {error}')
  except signals.Interrupted as stopped:
    # All processes of a run stop after the same step, and one says so.
    if hosts.is_first():
      with contextlib.suppress(OSError):  # The terminal may be gone: SIGHUP.
        print(_line(stopped), file=sys.stderr, flush=True)
    peers.finish(128 + stopped.signum)
    sys.exit(128 + stopped.signum)
  except KeyboardInterrupt:
    _exit(130, 'Interrupted.')
  except BrokenPipeError:
    # As of `| head`. The interpreter would complain when it flushes.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except OSError as error:  # A full disk, missing permissions.
    if error.strerror is None:
      raise
    where = f'{error.filename}: ' if error.filename else ''
    _exit(1, f'Error: {where}{error.strerror}.')


def _exit(code, message):
  if peers.watched():
    peers.leave(code, _line(message))
  print(_line(message), file=sys.stderr)
  sys.exit(code)


def _line(message):
  return ' '.join(str(message).split())


def _parse_flags(argv):
  """Parses flags as absl does, with its complaints in one line."""
  with _readable_errors():
    argv = _with_home(argv)
    _check_config(argv)
    try:
      return flags.FLAGS(argv)
    except flags.Error:
      raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise app.UsageError(f'The config cannot be set so: {error}') from error


def _with_home(argv):
  """Replaces `~` in `--config`, whose flag is not of `define_path`."""
  expand = lambda name: filenames.absolute(name) if name[:1] == '~' else name
  words = []
  for word in argv:
    flag, equals, name = word.partition('=')
    if words and words[-1] in ('-config', '--config'):
      word = expand(word)
    elif equals and flag in ('-config', '--config'):
      word = flag + equals + expand(name)
    words.append(word)
  return words


def _check_config(argv):
  """Raises a readable error if `--config` or a `--config.field` is wrong."""
  if 'config' not in flags.FLAGS:
    return
  filename, named = '', []
  for i, word in enumerate(argv):
    found = re.fullmatch(r'--?config(?:=(.*))?', word, re.DOTALL)
    if found:
      filename = found[1] if '=' in word else ''.join(argv[i + 1 : i + 2])
    found = re.match(r'--?(?:no)?config\.([^=]+)', word)
    if found:
      named.append(found[1])
  if not filename:
    return
  path, _, argument = filename.partition(':')
  make = getattr(_load_module(path), 'get_config', None)
  if make is None:
    raise errors.UserValueError(f'{path} has no function get_config.')
  config = _guarded_call(path, make, *[argument] * (':' in filename))
  if not isinstance(config, ConfigDict):
    raise errors.UserValueError(
        f'get_config of {path} must return a ConfigDict, got {type(config)}.'
    )
  known = _fields(config)
  for field in named:
    if field not in known:
      raise app.UsageError(
          f'There is no config field {field}.{errors.suggest(field, known)}'
          f'{_hint(field, known)}'
      )


def _hint(field, known):
  """Says how to add an option to a dictionary of options."""
  parent, _, name = field.rpartition('.')
  if parent not in known or not parent.endswith('options'):
    return ''
  return f' An option is added with --config.{parent}=\'{{"{name}": ...}}\'.'


def _fields(config, prefix=''):
  names = []
  for name in config:
    names.append(prefix + name)
    if isinstance(config[name], ConfigDict):
      names += _fields(config[name], f'{prefix}{name}.')
  return names


def _path(config_filename):
  return config_filename.partition(':')[0]  # The rest is get_config's argument.


@functools.cache
def _load_module(path):
  """Runs a config file."""
  if not os.path.isfile(path):
    raise errors.UserFileNotFoundError(
        f'There is no config file {path}; configs are Python files such as '
        'experiments/configs/quickstart.py.'
    )
  name = '_rnnzoo_config_file'
  loader = importlib.machinery.SourceFileLoader(name, os.path.abspath(path))
  spec = importlib.util.spec_from_loader(name, loader)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # Where `inspect` looks for the source of layers.
  _guarded_call(path, loader.exec_module, module)
  return module


def _guarded_call(path, function, *args):
  """Calls code of a config file; a mistake becomes a line with its place."""
  try:
    return function(*args)
  except errors.UserError:
    raise
  except SyntaxError as error:
    raise errors.UserError(
        f'{error.filename}, line {error.lineno}: {error.msg}.'
    ) from error
  except (Exception, SystemExit) as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == os.path.abspath(path)]
    place = f'{path}, line {lines[-1]}' if lines else path
    raise errors.UserError(
        f'{place}: {type(error).__name__}: {error}'
    ) from error
