"""Original files in a directory of the user: archives and their digests."""

from collections.abc import Callable, Iterator
import gzip
import hashlib
import pathlib
import tarfile
import zlib

from rnnzoo import errors
from rnnzoo.data.builders import records


def check_digest(path: pathlib.Path, digest: str):
  """Checks the SHA-256 of a file.

  Raises:
    UserError: If it is another one, or the file cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise errors.UserError(
        f'{path} cannot be read: {records.first_line(error)}.'
    ) from error
  if found != digest:
    raise errors.UserValueError(
        f'{path} is not the original file, whose SHA-256 is {digest}, or is '
        f'cut short: it has {found}, not {digest}. Get it again.'
    )


def members(
    archive: pathlib.Path, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
  """Yields the name and the content of files in a `.tar.gz`, in its order.

  Nothing is written to the disk, and links and devices are left out.

  Args:
    archive: The file.
    wanted: Whether a file of this name is read. Names have no `./` in front.

  Raises:
    UserError: If the archive is damaged.
  """
  try:
    # As a stream, so that it is unpacked once. With its mode `r|gz`, tarfile
    # would take a file that was cut short for a whole one.
    with (
        gzip.open(archive) as stream,
        tarfile.open(fileobj=stream, mode='r|') as files,
    ):
      for member in files:
        name = member.name.removeprefix('./')
        if member.isfile() and wanted(name):
          yield name, files.extractfile(member).read()  # pyright: ignore
  except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
    raise errors.UserError(
        f'{archive} cannot be read: {records.first_line(error)}.'
    ) from error
