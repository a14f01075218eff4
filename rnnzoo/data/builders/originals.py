"""Original files in a directory of the user: archives, digests, preparing."""

from collections.abc import Callable, Iterator
import contextlib
import gzip
import hashlib
import io
import pathlib
import tarfile
import zlib

from rnnzoo import errors
from rnnzoo.data.builders import records
import tensorflow_datasets as tfds


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
        f'{path} is not the original file, or is cut short: its SHA-256 is '
        f'{found}, not {digest}. Get it again.'
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


def prepare(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path,
) -> pathlib.Path:
  """Writes a data set under `data_dir`, unless it is there already.

  Args:
    builder_class: Its builder, which reads `manual_dir`.
    data_dir: Where data sets lie; made if missing.
    manual_dir: The directory with the original files.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If it cannot be written.
  """
  config = tfds.download.DownloadConfig(manual_dir=manual_dir)
  try:
    builder = builder_class(data_dir=data_dir, file_format='array_record')
    builder.download_and_prepare(download_config=config)
  except OSError as error:
    if isinstance(error, errors.UserError):
      raise
    raise errors.UserError(
        f'{builder_class.name} could not be prepared in {data_dir} from '
        f'{manual_dir}: {records.first_line(error)}.'
    ) from error
  return pathlib.Path(builder.data_dir)


@contextlib.contextmanager
def quiet():
  """Hides the progress of TFDS."""
  bars = io.StringIO()
  with contextlib.redirect_stdout(bars), contextlib.redirect_stderr(bars):
    yield
