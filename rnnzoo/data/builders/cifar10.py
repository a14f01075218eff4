"""CIFAR-10: a TFDS builder that needs no TensorFlow, and its reader.

It reads the binary version, `cifar-10-binary.tar.gz`, packed or unpacked. The
Python version holds pickles, which can run any code, and is not read.
"""

import io
import pathlib
import tarfile
import tempfile

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import originals
from rnnzoo.data.builders import records
import tensorflow_datasets as tfds

NAME = 'cifar10'
VERSION = '1.0.0'
ARCHIVE = 'cifar-10-binary.tar.gz'
ADDRESS = f'https://www.cs.toronto.edu/~kriz/{ARCHIVE}'
# The SHA-256 that TFDS has registered for the archive.
DIGEST = 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
FOLDER = 'cifar-10-batches-bin'
FILES = dict(
    train=tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
    test=('test_batch.bin',),
)
PYTHON_VERSION = ('cifar-10-python.tar.gz', 'cifar-10-batches-py')
CLASSES = (
    'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse',
    'ship', 'truck',
)
IMAGES = 10_000  # In each file.
# The label, then the pixels of red, of green and of blue, row by row.
_BYTES = 1 + 3 * 32 * 32
# Images in a record, as in smnist.py.
CHUNK = 1000


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Records of up to 1,000 images, `[n, 32, 32, 3]` uint8, and their labels."""

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
        description='Small photographs of ten kinds of things.',
        features=tfds.features.FeaturesDict({
            'images': tfds.features.Tensor(
                shape=(None, 32, 32, 3), dtype=np.uint8, encoding='bytes'
            ),
            'labels': tfds.features.Tensor(
                shape=(None,), dtype=np.uint8, encoding='bytes'
            ),
        }),
        homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
        disable_shuffling=True,  # The last training images are held out.
    )

  def _split_generators(self, dl_manager):
    found = read_originals(
        pathlib.Path(dl_manager.manual_dir), self.check_originals
    )
    return {
        split: self._generate_examples(*arrays)
        for split, arrays in found.items()
    }

  def _generate_examples(self, images, labels):
    for start in range(0, len(images), CHUNK):
      part = slice(start, start + CHUNK)
      yield start, {'images': images[part], 'labels': labels[part]}


def prepare(
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
    builder_class: type[Cifar10] = Cifar10,
) -> pathlib.Path:
  """Writes the data set under `data_dir`, unless it is there already.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: The directory with `cifar-10-binary.tar.gz`, or with the folder
      that is in it.
    builder_class: The builder, which knows whether to check the files.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If the files are not there or are not the right ones.
  """
  if manual_dir is None:
    raise errors.UserValueError(
        f'{NAME} needs --manual_dir=DIR, a directory with the file {ARCHIVE}. '
        f'It is at {ADDRESS}'
    )
  find(manual_dir)
  return records.write(builder_class, data_dir, manual_dir)


def find(directory: pathlib.Path) -> pathlib.Path:
  """Returns the folder with the six files, or else the archive.

  Raises:
    UserFileNotFoundError: If there is neither.
  """
  for place in (directory / FOLDER, directory):
    if (place / FILES['test'][0]).is_file():
      return place
  if (directory / ARCHIVE).is_file():
    return directory / ARCHIVE
  other = [name for name in PYTHON_VERSION if (directory / name).exists()]
  advice = (
      f' {other[0]} is the version for Python: it holds pickles, which are not '
      'read.' if other else ''
  )
  raise errors.UserFileNotFoundError(
      f'There is no file {ARCHIVE} and no folder {FOLDER} in {directory} '
      f'(--manual_dir).{advice} Get the binary version from {ADDRESS}'
  )


def read_originals(
    directory: pathlib.Path, check: bool = True
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns images `[N, 32, 32, 3]` and labels `[N]` of each split, uint8.

  Args:
    directory: With the archive, or with its files.
    check: Whether the archive must be the original one, and each file hold
      10,000 images.

  Raises:
    UserError: If a file is missing, damaged, or of another data set.
  """
  place = find(directory)
  names = [name for files in FILES.values() for name in files]
  if place.is_file():
    if check:
      originals.check_digest(place, DIGEST)
    contents = {
        pathlib.PurePosixPath(name).name: content
        for name, content in originals.members(
            place, lambda name: name in {f'{FOLDER}/{u}' for u in names}
        )
    }
  else:
    contents = {
        name: (place / name).read_bytes()
        for name in names if (place / name).is_file()
    }
  missing = [name for name in names if name not in contents]
  if missing:
    raise errors.UserFileNotFoundError(
        f'There is no file {missing[0]} in {place}. {NAME} is made of '
        f'{", ".join(names)}, all in {ARCHIVE} from {ADDRESS}'
    )
  found = {}
  for split, files in FILES.items():
    parts = [
        read_batch(contents[name], f'{name} in {place}', IMAGES if check else 0)
        for name in files
    ]
    images, labels = zip(*parts, strict=True)
    found[split] = np.concatenate(images), np.concatenate(labels)
  return found


def read_batch(
    content: bytes, what: str, count: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns images `[n, 32, 32, 3]` and labels `[n]` of one file, uint8.

  Args:
    content: Records of a label and 3,072 pixels: the rows of red from the top,
      then green, then blue.
    what: The name of the file, for the message.
    count: How many images there must be; any number if 0.

  Raises:
    UserValueError: If it is something else, or cut short.
  """
  whole, rest = divmod(len(content), _BYTES)
  if rest or not whole or count and whole != count:
    expected = f'{count:,}' if count else 'some'
    raise errors.UserValueError(
        f'{what} must hold {expected} records of {_BYTES:,} bytes, got '
        f'{len(content):,} bytes: it is cut short, or another file.'
    )
  values = np.frombuffer(content, np.uint8).reshape(whole, _BYTES)
  labels = values[:, 0]
  if labels.max() >= len(CLASSES):
    raise errors.UserValueError(
        f'{what} must hold labels from 0 to 9, got {labels.max()}.'
    )
  planes = values[:, 1:].reshape(whole, 3, 32, 32)
  return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def batch_bytes(images: np.ndarray, labels: np.ndarray) -> bytes:
  """Returns the content of a file that `read_batch` reads.

  Args:
    images: `[n, 32, 32, 3]` uint8.
    labels: `[n]` uint8.
  """
  planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
  return np.concatenate([labels[:, None], planes], 1).tobytes()


class _Fixture(Cifar10, skip_registration=True):
  name = NAME
  check_originals = False


def prepare_fixture(data_dir: pathlib.Path):
  """Writes the archive with a few images, and prepares it."""
  with tempfile.TemporaryDirectory() as directory:
    manual_dir = pathlib.Path(directory)
    write_fixture_archive(manual_dir)
    with records.quiet():
      prepare(data_dir, manual_dir, _Fixture)


def write_fixture_archive(directory: pathlib.Path):
  """Writes the archive: a class is a bar at a height of its own."""
  rng = np.random.default_rng(0)
  with tarfile.open(directory / ARCHIVE, 'w:gz', compresslevel=1) as archive:

    def add(name, content):
      info = tarfile.TarInfo(f'{FOLDER}/{name}')
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))

    add('batches.meta.txt', '\n'.join([*CLASSES, '']).encode())
    for files in FILES.values():
      for name in files:
        labels = rng.permutation(np.arange(60) % 10).astype(np.uint8)
        images = rng.integers(0, 60, (60, 32, 32, 3), np.uint8)
        for image, label in zip(images, labels, strict=True):
          image[1 + 3 * label : 4 + 3 * label, 4:28] = 250
        add(name, batch_bytes(images, labels))


def read(
    data_dir: pathlib.Path,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns images `[N, 32, 32, 3]` uint8 and labels `[N]` int32 by split.

  Args:
    data_dir: Where data sets lie: the parent of `cifar10`.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  return records.read(
      data_dir, NAME, VERSION, FILES,
      'To prepare it: {command} --manual_dir=DIR, where DIR has the file '
      f'{ARCHIVE} from {ADDRESS}.',
      convert=records.images_and_labels,
  )


def describe(data_dir: pathlib.Path) -> dict[str, str]:
  """Returns what each split holds, for people."""
  return {
      split: f'{len(labels):,} images'
      for split, (_, labels) in read(data_dir).items()
  }
