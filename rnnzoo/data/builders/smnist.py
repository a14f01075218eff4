"""MNIST: a TFDS builder that needs no TensorFlow, and its reader.

TFDS's own builder unpacks its files and encodes its images through TensorFlow.
This one reads the four original files from a directory, compressed or not.
"""

import gzip
import hashlib
import math
import pathlib
import tempfile
import zlib

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import records
import tensorflow_datasets as tfds

NAME = 'smnist'
VERSION = '1.0.0'
ADDRESS = 'https://storage.googleapis.com/cvdf-datasets/mnist/'
# Images and labels of each split, with the SHA-256 that TFDS has registered for
# the compressed files.
FILES = {
    'train': (
        'train-images-idx3-ubyte.gz',
        '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
        'train-labels-idx1-ubyte.gz',
        '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
    ),
    'test': (
        't10k-images-idx3-ubyte.gz',
        '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
        't10k-labels-idx1-ubyte.gz',
        'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
    ),
}
NAMES = tuple(name for files in FILES.values() for name in files[::2])
# Images in a record: a record for each would take seconds to read.
CHUNK = 1000


class SMNIST(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Records of up to 1,000 images, `[n, 28, 28]` uint8, and their labels."""

  name = NAME
  VERSION = tfds.core.Version(VERSION)
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      f'Put {", ".join(NAMES)} from {ADDRESS} into manual_dir.'
  )
  # Whether the files must be the original ones.
  check_digests = True

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='Images of handwritten digits.',
        features=tfds.features.FeaturesDict({
            'images': tfds.features.Tensor(
                shape=(None, 28, 28), dtype=np.uint8, encoding='bytes'
            ),
            'labels': tfds.features.Tensor(
                shape=(None,), dtype=np.uint8, encoding='bytes'
            ),
        }),
        homepage='http://yann.lecun.com/exdb/mnist/',
        disable_shuffling=True,  # The last training images are held out.
    )

  def _split_generators(self, dl_manager):
    directory = pathlib.Path(dl_manager.manual_dir)
    return {
        split: self._generate_examples(*read_originals(
            directory, split, self.check_digests
        ))
        for split in FILES
    }

  def _generate_examples(self, images, labels):
    for start in range(0, len(images), CHUNK):
      part = slice(start, start + CHUNK)
      yield start, {'images': images[part], 'labels': labels[part]}


def prepare(
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
    builder_class: type[SMNIST] = SMNIST,
) -> pathlib.Path:
  """Writes the data set under `data_dir`, unless it is there already.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: The directory with the four files.
    builder_class: The builder, which knows whether to check digests.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If the files are not there or are not the right ones.
  """
  if manual_dir is None:
    raise errors.UserValueError(
        f'{NAME} needs --manual_dir=DIR, a directory with the files '
        f'{", ".join(NAMES)}. They are at {ADDRESS}'
    )
  for name in NAMES:
    find(manual_dir, name)
  return records.write(builder_class, data_dir, manual_dir)


def find(directory: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the file `name`, which may be unpacked or have a dot in its name.

  Raises:
    UserFileNotFoundError: If there is none of them.
  """
  plain = name.removesuffix('.gz')
  dotted = plain.replace('-idx', '.idx')
  for known in (name, plain, f'{dotted}.gz', dotted):
    if (directory / known).is_file():
      return directory / known
  raise errors.UserFileNotFoundError(
      f'There is no file {name} or {plain} in {directory} (--manual_dir). '
      f'{NAME} is made of {", ".join(NAMES)} from {ADDRESS}'
  )


def read_originals(
    directory: pathlib.Path, split: str, check_digests: bool = True
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images `[N, 28, 28]` and labels `[N]` of two files, uint8.

  Raises:
    UserError: If a file is missing, damaged, or of another data set.
  """
  images_name, images_digest, labels_name, labels_digest = FILES[split]
  digests = (images_digest, labels_digest) if check_digests else (None, None)
  images = read_idx(find(directory, images_name), digests[0])
  labels = read_idx(find(directory, labels_name), digests[1])
  fits = images.shape[1:] == (28, 28) and labels.shape == images.shape[:1]
  if not fits or labels.max() > 9:
    raise errors.UserValueError(
        f'{images_name} and {labels_name} in {directory} must hold images of '
        f'28 x 28 pixels and as many labels from 0 to 9, got images '
        f'{list(images.shape)} and labels {list(labels.shape)}.'
    )
  return images, labels


def read_idx(path: pathlib.Path, digest: str | None = None) -> np.ndarray:
  """Returns the array in a file of the idx format of bytes.

  The format: two bytes 0, the type (8 for unsigned bytes), the number of axes,
  the size of each axis as a big-endian integer of 4 bytes, and the values.

  Args:
    path: The file; it is unpacked first if its name ends in `.gz`.
    digest: The SHA-256 of the compressed file, if known.

  Raises:
    UserError: If it is another file, or damaged.
  """
  try:
    content = path.read_bytes()
    if path.suffix == '.gz':
      if digest and hashlib.sha256(content).hexdigest() != digest:
        raise errors.UserValueError(
            f'{path} is not the original file of MNIST, whose SHA-256 is '
            f'{digest}. If it was only compressed anew, unpack it.'
        )
      content = gzip.decompress(content)
  except (OSError, EOFError, zlib.error) as error:
    raise errors.UserError(
        f'{path} cannot be read: {records.first_line(error)}.'
    ) from error
  head, axes = content[:3], content[3] if len(content) > 3 else 0
  start = 4 + 4 * axes
  shape = [
      int.from_bytes(content[i : i + 4], 'big') for i in range(4, start, 4)
  ]
  count = math.prod(shape)
  if head != b'\0\0\x08' or not count or len(content) - start != count:
    raise errors.UserValueError(
        f'{path} is not a file of unsigned bytes in the idx format, or it is '
        'cut short.'
    )
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def write_idx(path: pathlib.Path, values: np.ndarray):
  """Writes a uint8 array in the form that `read_idx` reads."""
  head = b'\0\0\x08' + bytes([values.ndim])
  content = head + np.array(values.shape, '>u4').tobytes() + values.tobytes()
  if path.suffix == '.gz':
    content = gzip.compress(content, mtime=0)
  path.write_bytes(content)


class _Fixture(SMNIST, skip_registration=True):
  name = NAME
  check_digests = False


def prepare_fixture(data_dir: pathlib.Path):
  """Writes the four files with a few images, and prepares them."""
  with tempfile.TemporaryDirectory() as directory:
    manual_dir = pathlib.Path(directory)
    write_fixture_files(manual_dir)
    with records.quiet():
      prepare(data_dir, manual_dir, _Fixture)


def write_fixture_files(directory: pathlib.Path):
  """Writes the four files: a digit is a bar at a height of its own."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 240), ('test', 60)):
    images_name, _, labels_name, _ = FILES[split]
    labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
    images = rng.integers(0, 60, (count, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
      image[4 + 2 * label : 6 + 2 * label, 4:24] = 250
    write_idx(directory / images_name, images)
    write_idx(directory / labels_name, labels)


def read(
    data_dir: pathlib.Path,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns images `[N, 28, 28]` uint8 and labels `[N]` int32 of each split.

  Args:
    data_dir: Where data sets lie: the parent of `smnist`.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  return records.read(
      data_dir, NAME, VERSION, FILES,
      'To prepare it: {command} --manual_dir=DIR, where DIR has the files '
      f'{", ".join(NAMES)} from {ADDRESS}.',
      convert=records.images_and_labels,
  )


def describe(data_dir: pathlib.Path) -> dict[str, str]:
  """Returns what each split holds, for people."""
  return {
      split: f'{len(labels):,} images'
      for split, (_, labels) in read(data_dir).items()
  }
