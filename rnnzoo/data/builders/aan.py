"""Pairs of papers of the ACL Anthology Network (AAN): builder and reader.

The Long Range Arena (LRA) made the pairs for its task "Retrieval". Its release
has one file for each split. A line is a pair, its fields are separated by tabs:
the label (1 if one paper cites the other), two identifiers and two texts. There
is no line of names. A text is written as Python writes bytes, `b'...'`.
"""

from collections.abc import Iterator
import pathlib
import tempfile

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import documents
from rnnzoo.data.builders import records
import tensorflow_datasets as tfds

NAME = 'aan'
VERSION = '1.0.0'
ADDRESS = 'https://storage.googleapis.com/long-range-arena/lra_release.gz'
FOLDER = 'tsv_data'  # Where the files are in the release.
FILES = {
    'train': 'new_aan_pairs.train.tsv',
    'validation': 'new_aan_pairs.eval.tsv',
    'test': 'new_aan_pairs.test.tsv',
}
# Characters of a text that are kept: the task has no more.
LENGTH = 4000


class AAN(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Pairs of texts and their labels, see `documents.features`."""

  name = NAME
  VERSION = tfds.core.Version(VERSION)
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      f'Put {", ".join(FILES.values())} from {ADDRESS} into manual_dir.'
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='Pairs of papers: does one cite the other?',
        features=documents.features(),
        homepage='https://github.com/google-research/long-range-arena',
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    directory = pathlib.Path(dl_manager.manual_dir)
    return {
        split: self._generate_examples(find(directory, file))
        for split, file in FILES.items()
    }

  def _generate_examples(self, path):
    yield from documents.records(read_pairs(path))


def prepare(
    data_dir: pathlib.Path, manual_dir: pathlib.Path | None = None
) -> pathlib.Path:
  """Writes the data set under `data_dir`, unless it is there already.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: The directory with the three files.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If the files are not there or cannot be read.
  """
  if manual_dir is None:
    raise errors.UserValueError(
        f'{NAME} needs --manual_dir=DIR, a directory with the files '
        f'{", ".join(FILES.values())}. They are in {FOLDER} of {ADDRESS}'
    )
  for file in FILES.values():
    find(manual_dir, file)
  return records.write(AAN, data_dir, manual_dir)


def find(directory: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the file `name` of a directory, or of the release in it.

  Raises:
    UserFileNotFoundError: If it is not there.
  """
  for folder in ('.', FOLDER, f'lra_release/{FOLDER}'):
    if (directory / folder / name).is_file():
      return directory / folder / name
  raise errors.UserFileNotFoundError(
      f'There is no file {name} in {directory} (--manual_dir). {NAME} is made '
      f'of {", ".join(FILES.values())}, which are in {FOLDER} of {ADDRESS}'
  )


def read_pairs(path: pathlib.Path) -> Iterator[documents.Example]:
  r"""Yields the pairs of texts of a file and their labels, 0 or 1.

  A text stays as it is written, `b'...'` with its escapes, as in the code of
  LRA and of S4: a byte of value 200 is the four characters `\xc8`. So all
  characters are those of ASCII, and there are no more than 95 of them. Of a
  text the first 4,000 characters are kept.

  Args:
    path: The file. It may be larger than the memory.

  Raises:
    UserError: If a line is not a pair, there is none, or the last one lacks the
      end of its text.
  """
  found = False
  try:
    with path.open('rb') as file:
      for number, line in enumerate(file, 1):
        found = True
        if not line.endswith((b'\n', b"'", b'"')):
          raise errors.UserValueError(
              f'{path} is cut short: it ends in line {number}. Get it again '
              f'from {ADDRESS}'
          )
        yield _pair(line.rstrip(b'\r\n'), f'Line {number} of {path}')
  except OSError as error:
    raise errors.UserError(
        f'{path} cannot be read: {records.first_line(error)}.'
    ) from error
  if not found:
    raise errors.UserValueError(f'{path} is empty.')


def _pair(line: bytes, place: str) -> documents.Example:
  parts = line.split(b'\t')
  label = dict.fromkeys((b'0', b'0.0'), 0) | dict.fromkeys((b'1', b'1.0'), 1)
  if len(parts) != 5 or parts[0] not in label:
    raise errors.UserValueError(
        f'{place} must be a label 0 or 1, two identifiers and two texts, '
        f'separated by tabs, got {len(parts)} parts, the first of them '
        f'{parts[0][:20].decode("utf-8", "replace")!r}.'
    )
  try:
    texts = [text.decode('utf-8')[:LENGTH] for text in parts[3:]]
  except UnicodeDecodeError as error:
    raise errors.UserValueError(f'{place} is not UTF-8: {error}.') from error
  return (texts[0], texts[1]), label[parts[0]]


def prepare_fixture(data_dir: pathlib.Path):
  """Writes the three files with a few short pairs, and prepares them."""
  with tempfile.TemporaryDirectory() as directory:
    manual_dir = pathlib.Path(directory)
    write_fixture_files(manual_dir)
    with records.quiet():
      prepare(data_dir, manual_dir)


def write_fixture_files(directory: pathlib.Path):
  """Writes the three files: papers of one subject cite each other."""
  rng = np.random.default_rng(0)
  subjects = (('parser', 'tree', 'grammar'), ('ζ', 'phoneme', 'vowel'))

  def paper(subject):
    words = rng.choice(subjects[subject], rng.integers(5, 25)).tolist()
    return repr('\n'.join(words).encode('utf-8'))

  for split, count in (('train', 240), ('validation', 60), ('test', 60)):
    lines = []
    for number in range(count):
      label, subject = number % 2, int(rng.integers(2))
      pair = paper(subject), paper(subject if label else 1 - subject)
      ids = f'P{number:02d}-1001', f'W{number:02d}-2002'
      lines.append('\t'.join([f'{label}.0', *ids, *pair]) + '\n')
    (directory / FILES[split]).write_text(''.join(lines), 'utf-8')


def read(data_dir: pathlib.Path) -> dict[str, documents.Documents]:
  """Returns the pairs of each split, two documents for each example.

  Args:
    data_dir: Where data sets lie: the parent of `aan`.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  return records.read(
      data_dir, NAME, VERSION, FILES,
      'To prepare it: {command} --manual_dir=DIR, where DIR has the files '
      f'{", ".join(FILES.values())} of {ADDRESS} ({FOLDER}).',
      convert=documents.of_records,
  )


def describe(data_dir: pathlib.Path) -> dict[str, str]:
  """Returns what each split holds, for people."""
  return {
      split: f'{len(found):,} pairs of papers'
      for split, found in read(data_dir).items()
  }
