"""Files that are never seen half written, and directories to write to."""

import contextlib
import pathlib

from rnnzoo import errors


def write_text(path: pathlib.Path, text: str):
  """Writes a file such that at no time there is half of it."""
  write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes):
  """Writes a file such that at no time there is half of it."""
  new = path.with_name(path.name + '.new')
  try:
    new.write_bytes(data)
    new.replace(path)
  except OSError:
    new.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def usable(workdir: pathlib.Path):
  """Turns errors of the system inside into `UserError`s about a workdir."""
  try:
    yield
  except errors.UserError:  # Some are of the system's kinds, too.
    raise
  except (FileExistsError, NotADirectoryError) as error:
    raise errors.UserValueError(
        f'--workdir={workdir} is not a directory.'
    ) from error
  except OSError as error:
    raise errors.UserError(
        f'--workdir={workdir} cannot be used: {error.strerror}.'
    ) from error
