"""Your own text: a UTF-8 file or a folder, cut into train, validation, test."""

from collections.abc import Sequence
import pathlib
from typing import Any

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.text import corpus


def read(config: Any) -> dict[str, str] | dict[str, list[str]]:
  """Returns the three splits of the text in the file `config.path`.

  A byte order mark at the start of a file is dropped. With `config.separator`,
  the text is cut after each place where that stands, and the splits are lists
  of documents, each with its separator at the end. If `config.path` is a
  folder, each file in it, also in folders of its own, is a document or several.
  Their order is that of their names; files whose names start with a dot do not
  count.

  Raises:
    UserFileNotFoundError: If there is no such file; `UserValueError` if it
      holds no UTF-8 text; `UserError` if it cannot be read.
  """
  path = settings.data_file(config, 'text_file', 'a UTF-8 text file')
  separator = config.separator
  if not path.is_dir():
    text = _read_file(path)
    if not separator:
      return corpus.split_text(text)
    return corpus.split_documents(documents(text, separator))
  files = [
      file for file in sorted(path.rglob('*'))
      if file.is_file()
      and not any(p.startswith('.') for p in file.relative_to(path).parts)
  ]
  if not files:
    raise errors.UserFileNotFoundError(
        f'The folder {path} (data.path) has no files.'
    )
  return corpus.split_documents([
      document for file in files
      for document in documents(_read_file(file), separator)
  ])


def documents(text: str, separator: str) -> Sequence[str]:
  """Cuts a text after each separator; nothing of it is lost.

  >>> documents('one|two|', '|')
  ['one|', 'two|']
  """
  if not separator:
    return [text] if text else []
  *pieces, last = text.split(separator)
  whole = [piece + separator for piece in pieces]
  return whole + [last] * bool(last)


def _read_file(path: pathlib.Path) -> str:
  try:
    return path.read_bytes().decode('utf-8-sig')
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
        path=fields.Field(
            str, default='',
            help='The file, in UTF-8, or a folder of files, each a document.',
        ),
        separator=fields.Field(
            str, default='',
            help='What ends a document. The state starts anew at each '
            'document.',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
