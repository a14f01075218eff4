"""The flags `--config=FILE[:ARGUMENT]` and `--config.FIELD=VALUE`.

Five fields choose other fields: `--config.preset`, `--config.data.name`,
`--config.environment.name`, `--config.model.layer` and, where it names a folder
of Hugging Face, `--config.init_from`. They are applied first, so that the
fields they bring can be set by further flags, in any order on the command line.
"""

from collections.abc import Callable, Mapping
import contextlib
import copy
import functools
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
import traceback
from typing import Any, NamedTuple

from absl import app
from absl import flags
from experiments.configs import default
from experiments.configs.rl import settings as rl_settings
from ml_collections import ConfigDict
from ml_collections import config_flags
from rnnzoo import convert
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import filenames
from rnnzoo import tasks as tasks_lib


class Exports(NamedTuple):
  """The dictionaries that a config file may define beside `get_config`."""

  layers: Mapping[str, Callable[..., Any]] | None = None
  datasets: Mapping[str, data.Definition] | None = None
  tasks: Mapping[str, type[tasks_lib.Task]] | None = None


NO_EXPORTS = Exports()


class ConfigFlag:
  """The value of `--config`, which is set when the flags are parsed.

  Attributes:
    filename: The path of the config file; `None` if the flag was not given.
    argument: What followed the file, after a colon; '' for nothing.
    overrides: The names of the fields that the command line sets.
    value: The config, overrides applied; `None` if the flag was not given.
    unchanged: The config as the file makes it.
    exports: The exports of the file.
    defaults: Returns the config that this program's files change.
  """

  def __init__(self, defaults: Callable[[], ConfigDict] = default.get_config):
    self.defaults = defaults
    self.filename, self.value, self.exports = None, None, NO_EXPORTS
    self.unchanged, self.argument, self.overrides = None, '', ()

  def take(self, argv: list[str], values=flags.FLAGS) -> list[str]:
    """Reads the config file; returns `argv` without `--config=FILE`.

    absl parses the flags `--config.FIELD` later; they are defined here.

    Args:
      argv: The command line.
      values: Where the flags are defined.

    Raises:
      UserError: If the file or a field is wrong.
    """
    filename, argv = _split(argv)
    if not filename:
      if any(re.match(r'--?(no)?config\.', word) for word in argv):
        raise app.UsageError('--config is required.')
      return argv
    path, colon, argument = filename.partition(':')
    self.filename, self.exports = path, exports_of(path)
    self.argument = argument
    config = _make(path, *[argument] * bool(colon))
    self.unchanged = copy.deepcopy(config)
    overrides = _overrides(argv)
    self.overrides = tuple(overrides)
    _switch(config, overrides, self.exports)
    _check_fields(config, overrides)
    self._holder = config_flags.DEFINE_config_dict(
        'config', config, lock_config=True, sys_argv=argv, flag_values=values
    )
    return argv

  def read(self) -> None:
    """Sets the value, after absl has parsed the overrides."""
    if self.filename:
      self.value = self._holder.value


_FLAG = ConfigFlag()
_DEFINED = []


def define(
    defaults: Callable[[], ConfigDict] = default.get_config
) -> ConfigFlag:
  """Defines the flag for this program; parsing sets its value.

  Args:
    defaults: Returns the config that the files of this program change.
  """
  _FLAG.defaults = defaults
  _DEFINED.append(True)
  return _FLAG


def defined() -> ConfigFlag | None:
  """Returns the flag if this program has it."""
  return _FLAG if _DEFINED else None


def parse(argv: list[str], parse_rest: Callable[[list[str]], Any]):
  """Parses `argv`, `--config` included if this program has that flag.

  Args:
    argv: The command line.
    parse_rest: Parses the remaining words, like `flags.FLAGS`.

  Returns:
    The result of `parse_rest`.
  """
  if not _DEFINED:
    return parse_rest(argv)
  argv = _FLAG.take(argv)
  rest = parse_rest(argv)
  _FLAG.read()
  return rest


def parse_alone(filename: str, *words: str) -> ConfigFlag:
  """Parses `--config=filename` and overrides, whatever this program's flags.

  Args:
    filename: `FILE` or `FILE:ARGUMENT`.
    *words: `--config.FIELD=VALUE`, any number.

  Raises:
    UserError: If the file is wrong; `app.UsageError` or `flags.Error` if a word
      is.
  """
  flag, values = ConfigFlag(), flags.FlagValues()
  with readable_errors():
    values(flag.take(['program', f'--config={filename}', *words], values))
  flag.read()
  return flag


@contextlib.contextmanager
def readable_errors():
  """Turns what ml_collections raises on a wrong value into `UsageError`."""
  try:
    yield
  except (flags.Error, errors.UserError):
    raise
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise app.UsageError(f'The config cannot be set so: {error}') from error


def exports_of(path: str | None) -> Exports:
  """Returns what a config file exports: `LAYERS`, `DATASETS` and `TASKS`.

  Args:
    path: The file, `:ARGUMENT` allowed; nothing is exported by `None`.

  Raises:
    UserError: If the file is missing or cannot be run, or an export is not a
      dictionary of the right things.
  """
  if not path:
    return NO_EXPORTS
  path = path.partition(':')[0]
  module = load_module(path)
  wanted = dict(
      LAYERS=('layers (classes)', callable),
      DATASETS=(
          'rnnzoo.data.Definition', lambda u: isinstance(u, data.Definition)
      ),
      TASKS=(
          'subclasses of rnnzoo.tasks.Task',
          lambda u: isinstance(u, type) and issubclass(u, tasks_lib.Task),
      ),
  )
  found = []
  for name, (what, is_right) in wanted.items():
    value = getattr(module, name, None)
    if value is not None and not (
        isinstance(value, dict)
        and all(isinstance(k, str) and is_right(v) for k, v in value.items())
    ):
      raise errors.UserValueError(
          f'{name} of {path} must be a dictionary of {what} by name, got '
          f'{fields.shown(value)}.'
      )
    found.append(value)
  return Exports(*found)


def _split(argv):
  """Returns the value of `--config`, `~` replaced, and the other words."""
  filename, rest, words = '', [], iter(argv)
  for word in words:
    found = re.fullmatch(r'--?config(?:=(.*))?', word, re.DOTALL)
    if not found:
      rest.append(word)
      continue
    filename = found[1] if '=' in word else next(words, '')
    if filename[:1] == '~':
      filename = filenames.absolute(filename)
  return filename, rest


def _overrides(argv) -> dict[str, str]:
  """Returns the words `--config.FIELD=VALUE` as text by field."""
  found = {}
  for i, word in enumerate(argv):
    match = re.fullmatch(
        r'--?(?:no)?config\.([^=]+)(?:=(.*))?', word, re.DOTALL
    )
    if match:
      following = ''.join(argv[i + 1 : i + 2])
      found[match[1]] = following if match[2] is None else match[2]
  return found


def _switch(config, overrides, exports):
  """Applies the overrides that bring other fields with them."""
  own_layer = config.get('model', {}).get('layer')
  if overrides.get('preset') and 'preset' in config:
    default.use_preset(config, overrides['preset'])
  if 'data.name' in overrides and 'data' in config:
    default.use_data(config, overrides['data.name'], exports.datasets)
  if 'environment.name' in overrides and 'environment' in config:
    rl_settings.use_environment(config, overrides['environment.name'])
  layer = overrides.get('model.layer')
  if layer and own_layer and layer != config.model.layer:
    default.use_layer(config, layer)
  folder = overrides.get('init_from')
  if folder and 'model' in config and convert.is_pretrained(folder):
    default.use_pretrained(config, folder)


def _check_fields(config, overrides):
  """Raises `UsageError` if there is no field of an override."""
  known = _fields(config)
  for field in overrides:
    if field in known:
      continue
    # absl knows only those options in a dictionary that have a value.
    parent, _, name = field.rpartition('.')
    hint = ''
    if parent in known and parent.endswith(('groups', 'options', 'stop_at')):
      hint = (
          f' An entry is added with --config.{parent}=\'{{"{name}": ...}}\'.'
      )
    raise app.UsageError(
        f'There is no config field {field}.{errors.suggest(field, known)}{hint}'
    )


def _fields(config, prefix=''):
  names = []
  for name in config:
    names.append(prefix + name)
    if isinstance(config[name], ConfigDict):
      names += _fields(config[name], f'{prefix}{name}.')
  return names


def _make(path, *argument) -> ConfigDict:
  """Calls `get_config` of a file. An argument that it lacks is a layer."""
  make = getattr(load_module(path), 'get_config', None)
  if make is None:
    raise errors.UserValueError(f'{path} has no function get_config.')
  takes_none = not inspect.signature(make).parameters
  config = _guarded_call(path, make, *([] if takes_none else argument))
  if not isinstance(config, ConfigDict):
    raise errors.UserValueError(
        f'get_config of {path} must return a ConfigDict, got {type(config)}.'
    )
  if argument and takes_none:
    default.use_layer(config, *argument)
  return config


@functools.cache
def load_module(path: str):
  """Runs a config file, once, and returns the module.

  Raises:
    UserError: If it is missing or cannot be run.
  """
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
