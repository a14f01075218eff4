"""Reading the `data` part of a config, and where data lies on disk."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from rnnzoo import filenames


def field(config: Any, name: str, default: Any = None) -> Any:
  """Returns a field of a mapping or an object; `default` if absent or None.

  >>> field({'level': 'byte'}, 'level', 'char')
  'byte'
  """
  if isinstance(config, Mapping):
    value = config.get(name)
  else:
    value = getattr(config, name, None)
  return default if value is None else value


def data_directory(config: Any = None) -> pathlib.Path:
  """Returns the directory that holds prepared data sets.

  It is `config.data_dir`, else the environment variable `RNNZOO_DATA_DIR`,
  else `rnnzoo` in the user's cache directory (`XDG_CACHE_HOME` or `~/.cache`).
  The directory need not exist.
  """
  named = field(config, 'data_dir') or os.environ.get('RNNZOO_DATA_DIR')
  if named:
    return pathlib.Path(filenames.absolute(named))
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(filenames.absolute(cache)) / 'rnnzoo'
