"""enwik8 and text8: a hundred million bytes of Wikipedia, and its plain words.

https://mattmahoney.net/dc/textdata.html. enwik8 is the first 10^8 bytes of the
XML dump of the English Wikipedia of 3 March 2006. text8 is the text of its
articles as 10^8 characters: the letters a to z and single spaces. The standard
splits are the first 90 million for training, the next 5 million for validation
and the last 5 million for the test. Results are in bits per byte (enwik8) and
per character (text8).

Each set is one file, which nobody but you downloads: enwik8.zip or text8.zip,
or what is in it, named by `data.path` or in the data directory.
"""

import pathlib
from typing import Any
import zipfile
import zlib

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.text import corpus

SIZE = 100_000_000
URL = 'https://mattmahoney.net/dc/{}.zip'


def read(name: str, config: Any) -> bytes:
  """Returns the content of the file.

  Args:
    name: `'enwik8'` or `'text8'`.
    config: Has `path`, `data_dir` and `level`.

  Raises:
    UserFileNotFoundError: If it is missing. `UserError` if it cannot be read,
      `UserValueError` if it has another size.
  """
  path = find(name, config)
  try:
    if path.suffix == '.zip':
      with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        content = file.read(SIZE + 1)  # What is longer is something else.
    else:
      with path.open('rb') as file:
        content = file.read(SIZE + 1)
  except OSError as error:
    raise errors.UserError(
        f'{path} (data.path) cannot be read: {error.strerror or error}.'
    ) from error
  except (KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
    why = str(error).strip('"').rstrip('.')
    raise errors.UserValueError(
        f'{path} (data.path) is no zip file with a file {name} in it: {why}.'
    ) from error
  if len(content) != SIZE and not settings.is_fixture(config):
    size = f'more than {SIZE:,}' if len(content) > SIZE else len(content)
    raise errors.UserValueError(
        f'{path} must be {name} with {SIZE:,} bytes, got {size}. '
        f'{how_to_get(name)}'
    )
  return content


def find(name: str, config: Any) -> pathlib.Path:
  """Returns the path of the file, see the module.

  Raises:
    UserFileNotFoundError: If there is none.
  """
  try:
    return settings.data_file(config, name, name)
  except errors.UserFileNotFoundError as error:
    directory = settings.data_directory(config)
    known = [
        folder / file
        for folder in (directory, directory / name)
        for file in (name, f'{name}.zip')
    ]
    found = [path for path in known if path.is_file()]
    if found and not config.path:
      return found[0]
    what = f'There is no file {config.path} (data.path)' if config.path else (
        f'There is no {name} in {directory} (data.data_dir)'
    )
    raise errors.UserFileNotFoundError(
        f'{what}. {how_to_get(name)}'
    ) from error


def how_to_get(name: str) -> str:
  """Returns the command that downloads a set, in a sentence."""
  url = URL.format(name)
  return (
      f'To get it: curl -O {url} (then {name}.zip holds {name}, {SIZE:,} '
      f'bytes), and --config.data.path={name}.zip.'
  )


def split(content: bytes, level: str) -> dict[str, str]:
  """Returns the standard splits, nine tenths and two halves of a tenth.

  A cut may lie inside of a character. With `level='byte'` its bytes are kept as
  surrogates, which `Vocabulary.encode` turns into the same bytes again.
  """
  wrong = 'surrogateescape' if level == 'byte' else 'replace'
  first, second = corpus.cuts(len(content))
  pieces = content[:first], content[first:second], content[second:]
  texts = [piece.decode('utf-8', wrong) for piece in pieces]
  return dict(zip(corpus.SPLITS, texts, strict=True))


def _definition(name: str, level: str) -> definition.Definition:
  def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
    texts = split(read(name, config), config.level)
    return corpus.load(name, texts, config, shard, seed)

  def write_fixture(directory: pathlib.Path, config: Any):
    settings.mark_fixture(directory)
    path = settings.fixture_file(directory, config, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ' '.join(corpus.fixture_text().split()).encode()
    if path.suffix == '.zip':
      with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    else:
      path.write_bytes(text)

  return definition.Definition(
      task='language_modelling',
      fields=dict(
          corpus.FIELDS,
          level=corpus.level_field(level),
          path=fields.Field(
              str, default='',
              help=f'The file {name} or {name}.zip. If empty, it lies in '
              'data_dir.',
          ),
      ),
      load=load,
      write_fixture=write_fixture,
  )


ENWIK8 = _definition('enwik8', 'byte')
TEXT8 = _definition('text8', 'char')
