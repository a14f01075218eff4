"""Names of files and directories that a person gives: one rule for all."""

import os

from rnnzoo import errors


def absolute(name: str | os.PathLike) -> str:
  """Returns the absolute name of a file, with `~` replaced by the home.

  Links stay as they are, unless `..` follows one: the system takes it for the
  parent of the link's target. A URL such as `gs://bucket/run` is returned as it
  came.

  >>> absolute('/data/./texts//t.txt')
  '/data/texts/t.txt'

  Args:
    name: Absolute, or relative to the working directory or to a home.

  Raises:
    UserValueError: If no file can have this name.
  """
  name = os.fspath(name)
  if '\0' in name:
    raise errors.UserValueError(
        f'A file name cannot hold the character NUL, got {name!r}.'
    )
  if '://' in name:
    return name
  name = os.path.expanduser(name)
  if name.startswith('~'):
    raise errors.UserValueError(
        f'There is no home directory for {name.split(os.sep)[0]!r}; write '
        f'./{name} for a file of this name.'
    )
  if '..' in name.split(os.sep):
    return os.path.realpath(name)
  return os.path.abspath(name)


def same(one: str, other: str) -> bool:
  """Whether two names mean one file, which need not exist; '' means none.

  >>> same('t.txt', './t.txt'), same('', '.')
  (True, False)
  """
  if one == other or not (one and other):
    return one == other
  one, other = (os.path.realpath(absolute(name)) for name in (one, other))
  return one == other
