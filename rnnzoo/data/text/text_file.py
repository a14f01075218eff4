"""Your own text: a UTF-8 file, cut into train, validation and test."""

import pathlib
from typing import Any

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.text import corpus


def read(config: Any) -> dict[str, str]:
  """Returns the three splits of the text in the file `config.path`.

  A byte order mark at the start of the file is dropped.

  Raises:
    UserFileNotFoundError: If there is no such file; `UserValueError` if it
      holds no UTF-8 text; `UserError` if it cannot be read.
  """
  path = settings.data_file(config, 'text_file', 'a UTF-8 text file')
  try:
    return corpus.split_text(path.read_bytes().decode('utf-8-sig'))
  except UnicodeDecodeError as error:
    raise errors.UserValueError(
        f'{path} (data.path) is not UTF-8 text: {error.reason} at byte '
        f'{error.start}.'
    ) from error
  except OSError as error:
    raise errors.UserError(
        f'{path} (data.path) cannot be read: {error.strerror}.'
    ) from error


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the text as a data set, see `corpus.load`."""
  return corpus.load('text_file', read(config), config, shard, seed)


def write_fixture(directory: pathlib.Path, config: Any):
  """Writes a small text, see `Definition.write_fixture`."""
  settings.mark_fixture(directory)
  path = settings.fixture_file(directory, config, 'text_file')
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(corpus.fixture_text().encode('utf-8'))


DEFINITION = definition.Definition(
    task='language_modelling',
    fields=dict(
        corpus.FIELDS,
        path=fields.Field(str, default='', help='The file, in UTF-8.'),
    ),
    load=load,
    write_fixture=write_fixture,
)
