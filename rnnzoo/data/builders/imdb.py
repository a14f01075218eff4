"""Film reviews of the IMDb: a TFDS builder that needs no TensorFlow.

The data is that of TFDS's `imdb_reviews`, whose own builder needs TensorFlow.
This one reads the original archive, or the folder that is in it.
"""

from collections.abc import Iterator
import io
import pathlib
import re
import tarfile
import tempfile

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import documents
from rnnzoo.data.builders import originals
from rnnzoo.data.builders import records
import tensorflow_datasets as tfds

NAME = 'imdb'
VERSION = '1.0.0'
ADDRESS = 'http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz'
ARCHIVE, FOLDER = 'aclImdb_v1.tar.gz', 'aclImdb'
# The SHA-256 of the archive that TFDS has registered for `imdb_reviews`.
DIGEST = 'c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe'
SPLITS = ('train', 'test')
LABELS = ('neg', 'pos')
COUNT = 12_500  # Reviews of each label in each split.
_PLACES = re.compile(
    rf'(?:.*/)?({"|".join(SPLITS)})/({"|".join(LABELS)})/(\d+)_(\d+)\.txt'
)


class IMDB(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Reviews and their labels, see `documents.features`."""

  name = NAME
  VERSION = tfds.core.Version(VERSION)
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      f'Put {ARCHIVE} from {ADDRESS} into manual_dir.'
  )
  # Whether the files must be the original ones.
  check_originals = True

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='Reviews of films, positive and negative.',
        features=documents.features(),
        homepage='http://ai.stanford.edu/~amaas/data/sentiment/',
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    read = read_originals(
        pathlib.Path(dl_manager.manual_dir), self.check_originals
    )
    return {
        split: self._generate_examples(read[split]) for split in SPLITS
    }

  def _generate_examples(self, examples):
    yield from documents.records(examples)


def prepare(
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
    builder_class: type[IMDB] = IMDB,
) -> pathlib.Path:
  """Writes the data set under `data_dir`, unless it is there already.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: The directory with the archive or its folder.
    builder_class: The builder, which knows whether to check the originals.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If the files are not there or are not the right ones.
  """
  if manual_dir is None:
    raise errors.UserValueError(
        f'{NAME} needs --manual_dir=DIR, a directory with {ARCHIVE} or the '
        f'folder {FOLDER} that is in it. It is at {ADDRESS}'
    )
  find(manual_dir)
  return records.write(builder_class, data_dir, manual_dir)


def find(directory: pathlib.Path) -> pathlib.Path:
  """Returns the archive, or the folder that is in it.

  Raises:
    UserFileNotFoundError: If there is neither.
  """
  if (directory / ARCHIVE).is_file():
    return directory / ARCHIVE
  for folder in (directory / FOLDER, directory):
    if (folder / 'train' / 'pos').is_dir():
      return folder
  raise errors.UserFileNotFoundError(
      f'There is no file {ARCHIVE} and no folder {FOLDER} in {directory} '
      f'(--manual_dir). The file is at {ADDRESS}'
  )


def read_originals(
    directory: pathlib.Path, check: bool = True
) -> dict[str, list[documents.Example]]:
  """Returns the reviews of each split and their labels, 0 for negative ones.

  Negative reviews come first; those of a label are in the order of their
  numbers. White space around a review is removed, as TFDS does. Reviews without
  a label (`unsup`) are left out.

  Args:
    directory: The directory with the archive or its folder.
    check: Whether the archive must be the original one, and whether there must
      be 12,500 reviews of each label in each split.

  Raises:
    UserError: If a file is missing or damaged.
  """
  source = find(directory)
  found = {(split, label): {} for split in SPLITS for label in LABELS}
  for name, content in _files(source, check):
    place = _PLACES.fullmatch(name)
    if not place:
      continue
    try:
      text = content.decode('utf-8').strip()
    except UnicodeDecodeError as error:
      raise errors.UserValueError(
          f'{name} in {source} is not UTF-8: {error}.'
      ) from error
    split, label, number, rating = place.groups()
    found[split, label][int(number), int(rating)] = text
  for (split, label), texts in found.items():
    if len(texts) != COUNT and (check or not texts):
      raise errors.UserValueError(
          f'{source} must hold {COUNT:,} reviews in {split}/{label}, got '
          f'{len(texts):,}. Unpack {ARCHIVE} from {ADDRESS} again.'
      )
  return {
      split: [
          ((text,), number)
          for number, label in enumerate(LABELS)
          for _, text in sorted(found[split, label].items())
      ]
      for split in SPLITS
  }


def _files(
    source: pathlib.Path, check: bool
) -> Iterator[tuple[str, bytes]]:
  """Yields the names and the contents of the files of reviews."""
  if source.is_dir():
    for split in SPLITS:
      for label in LABELS:
        for path in (source / split / label).glob('*.txt'):
          yield path.relative_to(source).as_posix(), path.read_bytes()
    return
  if check:
    originals.check_digest(source, DIGEST)
  yield from originals.members(
      source, lambda name: _PLACES.fullmatch(name) is not None
  )


class _Fixture(IMDB, skip_registration=True):
  name = NAME
  check_originals = False


def prepare_fixture(data_dir: pathlib.Path):
  """Writes an archive of a few short reviews, and prepares it."""
  with tempfile.TemporaryDirectory() as directory:
    manual_dir = pathlib.Path(directory)
    write_fixture_files(manual_dir)
    with records.quiet():
      prepare(data_dir, manual_dir, _Fixture)


def write_fixture_files(directory: pathlib.Path):
  """Writes the archive: positive reviews praise, negative ones do not."""
  rng = np.random.default_rng(0)
  words = dict(neg=('bad', 'dull'), pos=('fine', 'superb'), unsup=('odd',))
  with tarfile.open(directory / ARCHIVE, 'w:gz') as archive:
    for split, label, count in (
        ('train', 'neg', 120), ('train', 'pos', 120), ('train', 'unsup', 5),
        ('test', 'neg', 30), ('test', 'pos', 30),
    ):
      for number in range(count):
        length = rng.integers(4, 20)
        own = rng.choice(words[label], length)
        others = rng.choice(('the', 'film', 'was', '<br />', 'café'), length)
        text = ' '.join(np.stack([others, own], 1).ravel().tolist())
        content = text.encode('utf-8')
        name = f'{number}_{dict(neg=2, pos=9, unsup=0)[label]}.txt'
        info = tarfile.TarInfo(f'{FOLDER}/{split}/{label}/{name}')
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


def read(data_dir: pathlib.Path) -> dict[str, documents.Documents]:
  """Returns the reviews of train and test, one document for each example.

  Args:
    data_dir: Where data sets lie: the parent of `imdb`.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  return records.read(
      data_dir, NAME, VERSION, SPLITS,
      'To prepare it: {command} --manual_dir=DIR, where DIR has the file '
      f'{ARCHIVE} from {ADDRESS} or the folder {FOLDER} that is in it.',
      convert=documents.of_records,
  )


def describe(data_dir: pathlib.Path) -> dict[str, str]:
  """Returns what each split holds, for people."""
  return {
      split: f'{len(found):,} reviews'
      for split, found in read(data_dir).items()
  }
