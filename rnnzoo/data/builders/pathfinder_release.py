"""Pathfinder as the Long Range Arena published it: a builder and its reader.

The release has a folder for each size, such as `pathfinder32`, and in it one
for each difficulty. The published numbers of recurrent models are those of
`LEVEL`, the hardest. There, each file `metadata/N.npy` is plain text, in spite
of its name. A line describes an image:

  imgs/N sample_K.png K 1 1.0 14 4 2 0.5 1 1

The first two words name its file, the fourth one is its label. The others are
settings of the generator.
"""

from collections.abc import Iterator
import pathlib
import re
import sys
import tempfile
from typing import NamedTuple

import numpy as np
from PIL import Image
from rnnzoo import errors
from rnnzoo.data.builders import pathfinder
from rnnzoo.data.builders import pathfinder_contours
from rnnzoo.data.builders import records
import tensorflow_datasets as tfds
import tqdm

NAME = 'pathfinder_release'
VERSION = '1.0.0'
ADDRESS = 'https://storage.googleapis.com/long-range-arena/lra_release.gz'
LEVEL = 'curv_contour_length_14'
NUM_IMAGES = 200_000
# Files that are no images.
BLACKLIST = frozenset({'pathfinder32/curv_baseline/imgs/0/sample_172.png'})
# The release has no splits. These are ours: NumPy's permutation of this seed.
# The code of S4 splits with PyTorch's of the same seed, which is another.
SPLIT_SEED = 42
_LINE = re.compile(r'imgs/\d+ sample_\d+\.png \d+ [01]( \S+)*')


class Item(NamedTuple):
  """An image of the release.

  Attributes:
    path: Its file.
    label: 1 if the dots are ends of one contour, else 0.
  """

  path: pathlib.Path
  label: int


def full_name(size: int) -> str:
  """Returns the name of the directory of a size."""
  return f'{pathfinder.full_name(size)}_release'


def find_items(
    directory: pathlib.Path, size: int, level: str = LEVEL
) -> list[Item]:
  """Returns all images of one size, in the order of the metadata.

  Args:
    directory: The folder that holds `pathfinder32` and the like.
    size: The height and the width of the images.
    level: The difficulty, a folder in that of the size.

  Raises:
    UserError: If there are none, or a line is damaged.
  """
  folder = f'{pathfinder.full_name(size)}/{level}'
  files = [  # Some systems add files such as `._0.npy`.
      path for path in (directory / folder / 'metadata').glob('*.npy')
      if path.stem.isdecimal()
  ]
  if not files:
    raise errors.UserFileNotFoundError(
        f'There are no files metadata/0.npy, metadata/1.npy and so on in '
        f'{directory / folder}. --manual_dir must name the directory with the '
        f'folder {folder} of {ADDRESS}'
    )
  found = []
  for path in sorted(files, key=lambda path: int(path.stem)):
    try:
      lines = path.read_text(encoding='ascii').splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise errors.UserError(
          f'{path} cannot be read: {records.first_line(error)}.'
      ) from error
    for number, line in enumerate(lines, 1):
      if not _LINE.fullmatch(line):
        raise errors.UserValueError(
            f'Line {number} of {path} is damaged: it must start with a folder '
            f'imgs/N, a file sample_K.png, a number and a label, 0 or 1.'
        )
      place, name, _, label, *_ = line.split()
      if f'{folder}/{place}/{name}' not in BLACKLIST:
        found.append(Item(directory / folder / place / name, int(label)))
  return found


def read_image(path: pathlib.Path, size: int) -> np.ndarray:
  """Returns a grey image `[size, size]` uint8.

  Raises:
    UserError: If the file is missing or damaged, or the image has another size.
  """
  try:
    with Image.open(path, formats=['PNG']) as image:
      pixels = np.asarray(image.convert('L'))
  # Pillow raises a SyntaxError for some damaged files, and an error of its own
  # for a size of a billion pixels.
  except (
      OSError, SyntaxError, ValueError, Image.DecompressionBombError
  ) as error:
    raise errors.UserError(
        f'{path} cannot be read: {records.first_line(error)}. It is missing or '
        f'damaged; unpack {ADDRESS} again.'
    ) from error
  if pixels.shape != (size, size):
    raise errors.UserValueError(
        f'{path} must have {size} x {size} pixels, got {pixels.shape[0]} x '
        f'{pixels.shape[1]}.'
    )
  return pixels


def split(items: list[Item]) -> dict[str, list[Item]]:
  """Returns 80, 10 and 10 % of the images, drawn once and for all."""
  # The permutations of RandomState stay the same in all versions of NumPy.
  order = np.random.RandomState(SPLIT_SEED).permutation(len(items))
  return {
      name: [items[order[number]] for number in numbers]
      for name, numbers in pathfinder.ranges(len(items)).items()
  }


class PathfinderRelease(
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """Records of up to 500 images, see `pathfinder.features`."""

  VERSION = tfds.core.Version(VERSION)
  MANUAL_DOWNLOAD_INSTRUCTIONS = f'Unpack {ADDRESS} into manual_dir.'
  size = 32
  # How many images the release must have.
  num_images = NUM_IMAGES

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='Pathfinder of the Long Range Arena.',
        features=pathfinder.features(self.size),
        homepage='https://github.com/google-research/long-range-arena',
        disable_shuffling=True,  # The splits are shuffled.
    )

  def _split_generators(self, dl_manager):
    directory = pathlib.Path(dl_manager.manual_dir)
    items = find_items(directory, self.size)
    if len(items) != self.num_images:
      raise errors.UserValueError(
          f'{directory / pathfinder.full_name(self.size) / LEVEL} must have '
          f'{self.num_images:,} images, got {len(items):,}. It is not '
          f'complete; unpack {ADDRESS} again.'
      )
    bar = tqdm.tqdm(
        total=len(items), unit=' images', desc=self.name,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
    return {
        name: self._generate_examples(part, bar)
        for name, part in split(items).items()
    }

  def _generate_examples(self, items, bar) -> Iterator:
    for start in range(0, len(items), pathfinder.CHUNK):
      part = items[start : start + pathfinder.CHUNK]
      images = np.stack([read_image(item.path, self.size) for item in part])
      labels = np.array([item.label for item in part], np.uint8)
      yield start, {'images': images, 'labels': labels}
      bar.update(len(part))
    if bar.n == bar.total:
      bar.close()


def prepare(
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
    *,
    size: int = 32,
    num_images: int = NUM_IMAGES,
) -> pathlib.Path:
  """Writes the data set under `data_dir`, unless it is there already.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: The directory with the folder `pathfinder32`, or that of `size`.
    size: The height and the width of the images.
    num_images: How many images the release must have.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If the files are not there or are not the right ones.
  """
  pathfinder.check_size('--size', size)
  if manual_dir is None:
    raise errors.UserValueError(
        f'{NAME} needs --manual_dir=DIR, the directory with the folder '
        f'{pathfinder.full_name(size)}/{LEVEL} of {ADDRESS}'
    )

  class OneSize(PathfinderRelease, skip_registration=True):
    name = full_name(size)

  OneSize.size, OneSize.num_images = size, num_images
  return records.write(OneSize, data_dir, manual_dir)


def prepare_fixture(data_dir: pathlib.Path, size: int):
  """Writes a few images in the layout of the release, and prepares them."""
  count = pathfinder.FIXTURE_IMAGES[size]
  with tempfile.TemporaryDirectory() as directory:
    manual_dir = pathlib.Path(directory)
    write_fixture_files(manual_dir, size, count)
    with records.quiet():
      prepare(data_dir, manual_dir, size=size, num_images=count)


def write_fixture_files(
    directory: pathlib.Path, size: int, count: int, level: str = LEVEL
):
  """Writes generated images in the layout of the release, in two folders."""
  rules = pathfinder_contours.RULES[size]
  made = pathfinder.draw_chunk(rules, 1, count, 0)
  folder = directory / pathfinder.full_name(size) / level
  (folder / 'metadata').mkdir(parents=True)
  for part, rows in enumerate(np.array_split(np.arange(count), 2)):
    (folder / f'imgs/{part}').mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows):
      name, label = f'sample_{number}.png', made['labels'][row]
      Image.fromarray(made['images'][row]).save(folder / f'imgs/{part}' / name)
      lines.append(
          f'imgs/{part} {name} {number} {label} {rules.continuity} '
          f'{rules.contour_length} {rules.distractor_length} '
          f'{rules.dash_length} {rules.thickness} {rules.margins[0]} 1\n'
      )
    (folder / f'metadata/{part}.npy').write_text(''.join(lines))


def read(
    data_dir: pathlib.Path, size: int = 32
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns images `[N, size, size]` uint8 and labels `[N]` int32 by split.

  Args:
    data_dir: Where data sets lie: the parent of `pathfinder32_release`.
    size: The height and the width of the images.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  return records.read(
      data_dir, full_name(size), VERSION, pathfinder.SPLITS,
      'To prepare it: {command} --manual_dir=DIR, where DIR has the folder '
      f'{pathfinder.full_name(size)}/{LEVEL} of {ADDRESS}.',
      convert=records.images_and_labels, arguments=f'{NAME} --size={size}',
  )


def describe(data_dir: pathlib.Path, size: int = 32) -> dict[str, str]:
  """Returns what each split holds, for people."""
  return pathfinder.summaries(read(data_dir, size))
