"""Reading a data set that a builder wrote, with readable errors."""

from collections.abc import Callable, Iterable
import os
import pathlib
from typing import Any

from rnnzoo import errors
from rnnzoo.data.builders import features
import tensorflow_datasets as tfds


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
  directory = data_dir / name / version
  command = (
      f'python scripts/prepare_datasets.py {arguments or name} '
      f'--data_dir={data_dir}'
  )
  if not (directory / 'dataset_info.json').exists():
    raise errors.UserFileNotFoundError(
        f'{name} is not in {data_dir}. {original.format(command=command)} '
        'Data that lies elsewhere: name its directory with '
        '--config.data.data_dir or $RNNZOO_DATA_DIR.'
    )
  place, found = directory, {}
  try:
    features.check(directory)
    builder = tfds.builder_from_directory(directory)
    for split in splits:
      (place,) = map(pathlib.Path, builder.info.splits[split].filepaths)
      if os.path.abspath(place.parent) != os.path.abspath(directory):
        raise ValueError('it does not lie beside the others')
      records = list(
          builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
      )
      for record in records:
        # So a file that has lost its end may look.
        if any(value is None for value in record.values()):
          raise ValueError('it is cut short')
      found[split] = convert(records)
  # TFDS, protobuf and array_record each have their own errors for a file that
  # was cut short, overwritten, or written in another format.
  except Exception as error:
    reason = first_line(error).replace(str(place), place.name)
    raise errors.UserError(
        f'{place} of {name} cannot be read ({reason}). Move the data away and '
        f'prepare it again: {command}'
    ) from error
  return found


def first_line(error: Exception) -> str:
  """Returns what an error says, cut to its first line, without full stop."""
  lines = str(error).splitlines() or [type(error).__name__]
  return lines[0].rstrip('.')
