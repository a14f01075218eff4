"""Pathfinder, generated: a TFDS builder without TensorFlow, and its reader.

`pathfinder_drawing.py` draws the images. `pathfinder_release.py` prepares those
of the Long Range Arena instead.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import chunks
from rnnzoo.data.builders import pathfinder_contours
from rnnzoo.data.builders import pathfinder_drawing
from rnnzoo.data.builders import records
import tensorflow_datasets as tfds
import tqdm

NAME = 'pathfinder'
VERSION = '1.0.0'
SIZES = tuple(pathfinder_contours.RULES)
NUM_IMAGES = 200_000
SPLITS = {'train': 8, 'validation': 1, 'test': 1}  # Tenths of all images.
# Raise it with every change of the images that a seed gives.
GENERATOR = 1
# Images that are drawn together, and images in a record: a record for each
# would take seconds to read.
CHUNK = 500
# Enough to try out programs.
FIXTURE_IMAGES = {16: 400, 32: 100, 128: 40}


def full_name(size: int) -> str:
  """Returns the name of the directory of a size.

  >>> full_name(32)
  'pathfinder32'
  """
  return f'{NAME}{size}'


def features(size: int) -> tfds.features.FeaturesDict:
  """Returns the features of a record: up to 500 images and their labels."""
  return tfds.features.FeaturesDict({
      'images': tfds.features.Tensor(
          shape=(None, size, size), dtype=np.uint8, encoding='bytes'
      ),
      'labels': tfds.features.Tensor(
          shape=(None,), dtype=np.uint8, encoding='bytes'
      ),
  })


def ranges(num_images: int) -> dict[str, range]:
  """Returns the numbers of the images of each split.

  >>> ranges(200)['validation']
  range(160, 180)
  """
  found, start = {}, 0
  for split, tenths in SPLITS.items():
    found[split] = range(start, start + num_images * tenths // 10)
    start = found[split].stop
  return found


def labels_of(seed: int, number: int) -> np.ndarray:
  """Returns the labels of the images of a chunk, `[CHUNK]` uint8.

  Of the images 0 and 1, of 2 and 3 and so on, one is positive. So all splits
  are balanced.
  """
  rng = pathfinder_contours.generator(seed, number, 'labels')
  first = (rng.random(CHUNK // 2) < 0.5).astype(np.uint8)
  return np.stack([first, 1 - first], 1).reshape(-1)


def draw_chunk(
    rules: pathfinder_contours.Rules, seed: int, num_images: int, number: int
) -> dict[str, np.ndarray]:
  """Returns the images and the labels of a chunk, a function of its number.

  Args:
    rules: How images look.
    seed: Decides all images.
    num_images: How many there are in all; the last chunk may be shorter.
    number: The number of the chunk.
  """
  start = number * CHUNK
  numbers = range(start, min(start + CHUNK, num_images))
  labels = labels_of(seed, number)[: len(numbers)]
  images = pathfinder_drawing.draw(rules, seed, numbers, labels)
  return dict(images=images, labels=labels)


class Pathfinder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Records of up to 500 images, see `features`. `builder_of` makes it."""

  VERSION = tfds.core.Version(VERSION)
  # What is generated, and with how many processes.
  size = 32
  seed = 0
  num_images = NUM_IMAGES
  workers = 1
  # Where chunks are kept until the data set is complete.
  chunk_dir = pathlib.Path('pathfinder_chunks')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='Two dots: the ends of one dashed contour, or of two?',
        features=features(self.size),
        homepage='https://arxiv.org/abs/2011.04006',
        disable_shuffling=True,  # They are in random order.
        metadata=tfds.core.MetadataDict(
            seed=self.seed, num_images=self.num_images, generator=GENERATOR
        ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    parts = self._parts()
    return {
        split: self._generate_examples(parts, numbers)
        for split, numbers in ranges(self.num_images).items()
    }

  def _generate_examples(self, parts, numbers):
    count = -(-numbers.stop // CHUNK) - numbers.start // CHUNK
    yield from itertools.islice(parts, count)

  def _parts(self):
    """Yields numbers and the chunks; a chunk of two splits is two parts."""
    rules = pathfinder_contours.RULES[self.size]
    made = chunks.make(
        functools.partial(draw_chunk, rules, self.seed, self.num_images),
        range(-(-self.num_images // CHUNK)),
        self.chunk_dir,
        f'{GENERATOR} {self.seed} {self.num_images} {rules}',
        self.workers,
    )
    bar = tqdm.tqdm(
        total=self.num_images, unit=' images', desc=full_name(self.size),
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
    with bar, contextlib.closing(made):
      for number, chunk in enumerate(made):
        for numbers in ranges(self.num_images).values():
          start, stop = (
              min(max(end - number * CHUNK, 0), CHUNK)
              for end in (numbers.start, numbers.stop)
          )
          if start < stop:
            bar.update(stop - start)
            yield number, {k: array[start:stop] for k, array in chunk.items()}


def builder_of(size: int, num_images: int, seed: int) -> type[Pathfinder]:
  """Returns the builder of images of one size."""
  class OneSize(Pathfinder, skip_registration=True):
    name = full_name(size)

  OneSize.size, OneSize.num_images, OneSize.seed = size, num_images, seed
  return OneSize


def prepare(
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
    *,
    size: int = 32,
    num_images: int = NUM_IMAGES,
    seed: int = 0,
    workers: int = 0,
) -> pathlib.Path:
  """Generates the data set under `data_dir`, unless it is there already.

  After a stop, the same call goes on: chunks of 500 images are kept beside the
  data set until it is complete. Image i is the same for any number of images
  and of processes.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: Must be None: no files are read.
    size: The height and the width of an image, one of `SIZES`.
    num_images: The number of images, a multiple of 20: 80 % train, 10 %
      validate and 10 % test.
    seed: Decides all images.
    workers: The number of processes; 0 means one for each CPU core.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If an argument is wrong, the data set cannot be written, or it is
      there with other images.
  """
  if manual_dir is not None:
    raise errors.UserValueError(
        f'{NAME} is generated and takes no --manual_dir. The files of the Long '
        f'Range Arena make {NAME}_release.'
    )
  check_size('--size', size)
  if num_images < 20 or num_images % 20:
    raise errors.UserValueError(
        '--num_images must be a positive multiple of 20, so that all splits '
        f'are balanced, got {num_images}.'
    )
  name = full_name(size)
  try:
    builder = builder_of(size, num_images, seed)(
        data_dir=data_dir, file_format='array_record'
    )
    builder.workers = workers or os.cpu_count() or 1
    builder.chunk_dir = data_dir / name / f'chunks_of_seed_{seed}'
    directory = pathlib.Path(builder.data_dir)
    if (directory / 'dataset_info.json').exists():
      _check_same(data_dir, size, dict(seed=seed, num_images=num_images))
    else:
      builder.download_and_prepare(
          download_config=tfds.download.DownloadConfig(
              num_shards=records.NUM_SHARDS
          )
      )
    shutil.rmtree(builder.chunk_dir, ignore_errors=True)
  except OSError as error:
    raise errors.UserError(
        f'{name} could not be prepared in {data_dir}: '
        f'{records.first_line(error)}.'
    ) from error
  return directory


def check_size(name: str, size: Any):
  """Raises `UserValueError` if there are no images of this size."""
  if size not in SIZES:
    raise errors.UserValueError(
        f'{name} must be one of {", ".join(map(str, SIZES))}, got {size!r}.'
    )


def _check_same(data_dir, size, wanted):
  there = origin(data_dir, size)
  for field, value in wanted.items():
    if there.get(field) != value:
      raise errors.UserValueError(
          f'{data_dir / full_name(size)} was prepared with '
          f'--{field}={there.get(field)}, not with --{field}={value}. Move it '
          'away, or name another --data_dir.'
      )


def origin(data_dir: pathlib.Path, size: int) -> dict[str, int]:
  """Returns the seed, the number of images and that of the generator.

  Raises:
    UserError: If the data set is not there, or damaged.
  """
  path = data_dir / full_name(size) / VERSION / 'metadata.json'
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise errors.UserError(
        f'{path} cannot be read: {records.first_line(error)}.'
    ) from error


def prepare_fixture(data_dir: pathlib.Path, size: int):
  """Prepares a few images."""
  with records.quiet():
    prepare(data_dir, size=size, num_images=FIXTURE_IMAGES[size], workers=1)


def read(
    data_dir: pathlib.Path, size: int = 32
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns images `[N, size, size]` uint8 and labels `[N]` int32 by split.

  Args:
    data_dir: Where data sets lie: the parent of `pathfinder32`.
    size: One of `SIZES`.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  return records.read(
      data_dir, full_name(size), VERSION, SPLITS,
      'To generate it: {command}.', convert=records.images_and_labels,
      arguments=f'{NAME} --size={size}',
  )


def describe(data_dir: pathlib.Path, size: int = 32) -> dict[str, str]:
  """Returns what each split holds, for people."""
  return summaries(read(data_dir, size))


def summaries(
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, str]:
  """Returns a line on the images of each split."""
  return {
      split: f'{len(labels):,} images of {images.shape[1]} x '
      f'{images.shape[2]} pixels, {labels.sum():,} of them positive'
      for split, (images, labels) in splits.items()
  }
