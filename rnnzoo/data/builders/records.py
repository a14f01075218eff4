"""Writing a data set by its builder and reading it, with readable errors."""

from collections.abc import Callable, Iterable
import contextlib
import io
import json
import os
import pathlib
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import features
import tensorflow_datasets as tfds

# Files of a split, as the reader wants it. TFDS would write more for a split of
# 128 MiB.
NUM_SHARDS = 1


def read(
    data_dir: pathlib.Path,
    name: str,
    version: str,
    splits: Iterable[str],
    original: str,
    convert: Callable[[list[dict[str, Any]]], Any],
    arguments: str = '',
) -> dict[str, Any]:
  """Returns what `convert` makes of the records of each split.

  Args:
    data_dir: Where data sets lie: the parent of the directory `name`.
    name: The name of the data set.
    version: Its version.
    splits: The splits to read.
    original: A sentence on how to prepare it, with `{command}` in it.
    convert: Called with the records of a split.
    arguments: What follows `scripts/prepare_datasets.py`; `name` if empty.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  directory, command = _prepared(
      data_dir, name, version, original, arguments or name
  )
  place, found = directory, {}
  try:
    builder = _builder(directory)
    for split in splits:
      place = _path(builder, directory, split)
      records = list(
          builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
      )
      for record in records:
        _check_whole(record)
      found[split] = convert(records)
  # TFDS, protobuf and array_record each have their own errors for a file that
  # was cut short, overwritten, or written in another format.
  except Exception as error:
    raise _damaged(place, name, command, error) from error
  return found


def images_and_labels(
    found: list[dict[str, Any]],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns images `[N, ...]` uint8 and labels `[N]` int32 of a split.

  It empties the list, so that large images are not in memory twice.
  """
  count = sum(len(record['labels']) for record in found)
  images = np.empty((count, *found[0]['images'].shape[1:]), np.uint8)
  labels = np.empty(count, np.int32)
  found.reverse()
  start = 0
  while found:
    record = found.pop()
    part = slice(start, start := start + len(record['labels']))
    images[part], labels[part] = record['images'], record['labels']
  return images, labels


class Opened:
  """The records of one split, each read when it is asked for."""

  def __init__(self, source, path: pathlib.Path, name: str, command: str):
    self._source, self._path = source, path
    self._name, self._command = name, command

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns a record.

    Raises:
      UserError: If the file cannot be read.
    """
    try:
      record = self._source[index]
      _check_whole(record)
      return record
    except Exception as error:
      raise _damaged(self._path, self._name, self._command, error) from error


def open_splits(
    data_dir: pathlib.Path,
    name: str,
    version: str,
    splits: Iterable[str],
    original: str,
) -> tuple[dict[str, Opened], dict[str, Any]]:
  """Returns the records of each split, unread, and its metadata, by split.

  The arguments and the errors are those of `read`.
  """
  directory, command = _prepared(data_dir, name, version, original, name)
  place, found, details = directory, {}, {}
  try:
    builder = _builder(directory)
    metadata = json.loads((directory / 'metadata.json').read_text())
    for split in splits:
      details[split] = metadata[split]
      place = _path(builder, directory, split)
      source = (
          builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
      )
      found[split] = Opened(source, place, name, command)
  except Exception as error:
    raise _damaged(place, name, command, error) from error
  return found, details


def _prepared(data_dir, name, version, original, arguments):
  """Returns the directory of a data set, and the command that prepares it."""
  directory = data_dir / name / version
  command = (
      f'python scripts/prepare_datasets.py {arguments} --data_dir={data_dir}'
  )
  if not (directory / 'dataset_info.json').exists():
    raise errors.UserFileNotFoundError(
        f'{name} is not in {data_dir}. {original.format(command=command)} '
        'Data that lies elsewhere: name its directory with '
        '--config.data.data_dir or $RNNZOO_DATA_DIR.'
    )
  return directory, command


def _builder(directory):
  features.check(directory)
  return tfds.builder_from_directory(directory)


def _path(builder, directory, split) -> pathlib.Path:
  (place,) = map(pathlib.Path, builder.info.splits[split].filepaths)
  if os.path.abspath(place.parent) != os.path.abspath(directory):
    raise ValueError('it does not lie beside the others')
  return place


def _check_whole(record):
  # So a file that has lost its end may look.
  if any(value is None for value in record.values()):
    raise ValueError('it is cut short')


def _damaged(place, name, command, error) -> errors.UserError:
  reason = first_line(error).replace(str(place), place.name)
  return errors.UserError(
      f'{place} of {name} cannot be read ({reason}). Move the data away and '
      f'prepare it again: {command}'
  )


def write(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path,
) -> pathlib.Path:
  """Prepares a data set, unless it is there already.

  Args:
    builder_class: Its builder.
    data_dir: Where data sets lie; made if missing.
    manual_dir: The directory with the original files.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If a file cannot be read or written.
  """
  config = tfds.download.DownloadConfig(
      manual_dir=manual_dir, num_shards=NUM_SHARDS
  )
  try:
    builder = builder_class(data_dir=data_dir, file_format='array_record')
    builder.download_and_prepare(download_config=config)
  except errors.UserError:
    raise
  except OSError as error:
    raise errors.UserError(
        f'{builder_class.name} could not be prepared in {data_dir} from '
        f'{manual_dir}: {first_line(error)}.'
    ) from error
  return pathlib.Path(builder.data_dir)


@contextlib.contextmanager
def quiet():
  """Hides the progress of TFDS."""
  bars = io.StringIO()
  with contextlib.redirect_stdout(bars), contextlib.redirect_stderr(bars):
    yield


def first_line(error: Exception) -> str:
  """Returns what an error says, cut to its first line, without full stop."""
  lines = str(error).splitlines() or [type(error).__name__]
  return lines[0].rstrip('.')
