"""Reading the `data` part of a config, and where data lies on disk."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from rnnzoo import errors
from rnnzoo import filenames

# A directory with this file holds generated data, see `mark_fixture`.
_FIXTURE = 'THIS_IS_GENERATED_DATA.txt'


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


def names(config: Any) -> list[str]:
  """Returns the names of the fields of a mapping or an object.

  A field whose value is `None` counts as absent.
  """
  items = config.items() if hasattr(config, 'items') else vars(config).items()
  return [name for name, value in items if value is not None]


def data_directory(config: Any = None) -> pathlib.Path:
  """Returns the directory that holds prepared data sets.

  It is `config.data_dir`, else the environment variable `RNNZOO_DATA_DIR`,
  else `rnnzoo` in the user's cache directory (`XDG_CACHE_HOME` or `~/.cache`).
  The directory need not exist.
  """
  named = field(config, 'data_dir') or os.environ.get('RNNZOO_DATA_DIR')
  if named:
    return pathlib.Path(filenames.absolute(named))
  return _cache()


def fixture_directory(config: Any = None) -> pathlib.Path:
  """Returns the directory for fixtures: `fixtures` in `config.data_dir`.

  Without `config.data_dir` it is in the user's cache directory, and not in
  `RNNZOO_DATA_DIR`, which others may share.
  """
  named = field(config, 'data_dir')
  parent = pathlib.Path(filenames.absolute(named)) if named else _cache()
  return parent / 'fixtures'


def _cache() -> pathlib.Path:
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(filenames.absolute(cache)) / 'rnnzoo'


def data_file(config: Any, name: str, kind: str) -> pathlib.Path:
  """Returns the file that `config.path` names.

  A file that is not there under this name may lie in the directory `name` of
  the data directory, where fixtures are written.

  Args:
    config: Has `path`, and perhaps `data_dir`.
    name: The name of the data set.
    kind: What the file is, for the message.

  Raises:
    UserFileNotFoundError: If `path` is empty, or names no file.
  """
  path = field(config, 'path', '')
  named = pathlib.Path(filenames.absolute(path)) if path else None
  if named and named.exists():
    return named
  other = fixture_file(data_directory(config), config, name)
  if other.exists():
    return other
  if not named:
    raise errors.UserFileNotFoundError(
        f'data.name={name} needs data.path, the name of {kind}.'
    )
  raise errors.UserFileNotFoundError(f'There is no file {named} (data.path).')


def fixture_file(
    directory: pathlib.Path, config: Any, name: str
) -> pathlib.Path:
  """Returns where a fixture of the file `config.path` lies in `directory`."""
  path = field(config, 'path', '')
  return directory / name / (pathlib.PurePath(path).name or 'fixture')


def mark_fixture(directory: pathlib.Path):
  """Marks a data directory as one of generated files; makes it if missing."""
  directory.mkdir(parents=True, exist_ok=True)
  (directory / _FIXTURE).write_text(
      'The data sets in this directory were generated to try out programs.\n'
      'No result on them means anything.\n'
  )


def is_fixture(config: Any) -> bool:
  """Whether the data directory of a config holds generated files."""
  return (data_directory(config) / _FIXTURE).exists()
