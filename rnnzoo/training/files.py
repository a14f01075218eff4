"""Writes files all at once, and checks directories and files before writing.

A workdir may be a symbolic link. A file in it that a run appends to, or a
directory in which a run deletes, may not be one: the run would change files
outside its workdir.
"""

import contextlib
import errno
import os
import pathlib
import stat

from rnnzoo import errors
from rnnzoo import filenames


def workdir(name) -> pathlib.Path:
  """Returns the absolute path of a workdir.

  Raises:
    UserValueError: If it cannot be a directory here.
  """
  name = filenames.absolute(name)
  if '://' in name:
    raise errors.UserValueError(
        f'--workdir={name} must be a directory of this machine or of a file '
        'system that it has mounted.'
    )
  return pathlib.Path(name)


def write_text(path: pathlib.Path, text: str):
  """Writes a text file so that no reader ever sees half of it."""
  write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes):
  """Writes a file so that no reader ever sees half of it.

  A link of this name is replaced; the file that it points to does not change.
  """
  if '://' in str(path):  # Object stores write all or nothing themselves.
    path.write_bytes(data)
    return
  new = path.with_name(path.name + '.new')
  try:
    new.unlink(missing_ok=True)  # A killed process may have left one.
    with open(new, 'xb') as file:
      file.write(data)
      file.flush()
      _sync(file.fileno())
    new.replace(path)
  except OSError:
    with contextlib.suppress(OSError):
      new.unlink()
    raise


def _sync(descriptor: int):
  """Waits until a file is on disk, if its file system can do that."""
  try:
    os.fsync(descriptor)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
      raise


def check_own(path) -> None:
  """Raises `UserError` if a run must not change what lies at a path.

  Args:
    path: A file or a directory in a workdir; it may be missing.
  """
  try:
    mode = os.lstat(path).st_mode
  except FileNotFoundError:
    return
  if stat.S_ISLNK(mode):
    raise errors.UserError(
        f'{path} is a symbolic link, and a run changes nothing outside its '
        'workdir: remove the link, or make the whole workdir a link.'
    )
  if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
    raise errors.UserError(
        f'{path} is neither a file nor a directory. Remove it.'
    )


def open_own(path, flags: int) -> int:
  """Opens a file of a run, but no link; for `opener` of the function `open`."""
  check_own(path)
  return os.open(path, flags | getattr(os, 'O_NOFOLLOW', 0), 0o666)


@contextlib.contextmanager
def usable(workdir: pathlib.Path):
  """Turns system errors inside into `UserError`s about a workdir."""
  try:
    yield
  except errors.UserError:  # Some of them are `OSError`s too.
    raise
  except (FileExistsError, NotADirectoryError) as error:
    raise errors.UserValueError(
        f'--workdir={workdir} is not a directory.'
    ) from error
  except OSError as error:
    raise errors.UserError(
        f'--workdir={workdir} cannot be used: {error.strerror}.'
    ) from error
