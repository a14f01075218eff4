"""Prepares data sets for training, without TensorFlow.

  python scripts/prepare_datasets.py tiny_shakespeare

downloads the text and writes it where `experiments.train` looks for it. Without
a network, put the original file into a directory and add --manual_dir=DIR.

  python scripts/prepare_datasets.py smnist --manual_dir=DIR

reads the original files in DIR. Without --manual_dir, the command says which
files these are, and where to get them. The same holds for aan, cifar10, imdb,
listops_release, pathfinder_release and speech_commands.

  python scripts/prepare_datasets.py listops pathfinder

generates the data with all CPU cores, or with --workers=N processes; the data
is the same for any N. --seed=N gives other data. After a stop, the same command
goes on. Pathfinder with --size=128 is Path-X; --num_images=N makes fewer images
or more.
"""

import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo.data import settings
from rnnzoo.data.builders import aan
from rnnzoo.data.builders import cifar10
from rnnzoo.data.builders import d4rl
from rnnzoo.data.builders import hopper_ours
from rnnzoo.data.builders import imdb
from rnnzoo.data.builders import listops
from rnnzoo.data.builders import listops_release
from rnnzoo.data.builders import pathfinder
from rnnzoo.data.builders import pathfinder_release
from rnnzoo.data.builders import smnist
from rnnzoo.data.builders import speech_commands
from rnnzoo.data.builders import tiny_shakespeare
import tensorflow_datasets as tfds

DATASETS = {
    'aan': aan,
    'cifar10': cifar10,
    'hopper_ours': hopper_ours,
    'imdb': imdb,
    'listops': listops,
    'listops_release': listops_release,
    'pathfinder': pathfinder,
    'pathfinder_release': pathfinder_release,
    'smnist': smnist,
    'speech_commands': speech_commands,
    'tiny_shakespeare': tiny_shakespeare,
    **d4rl.SOURCES,
}
# Those that --seed and --workers are for.
GENERATED = ('hopper_ours', 'listops', 'pathfinder')
# Those that --size is for.
SIZED = ('pathfinder', 'pathfinder_release')

_DATA_DIR = flags.DEFINE_string(
    'data_dir',
    '',
    'Where to write; default $RNNZOO_DATA_DIR, or else rnnzoo in the cache '
    'directory of the user.',
)
_MANUAL_DIR = flags.DEFINE_string(
    'manual_dir',
    '',
    'A directory with the original files, to download nothing.',
)
_WORKERS = flags.DEFINE_integer(
    'workers',
    0,
    'The number of processes that generate data; 0 means one for each CPU '
    'core.',
    lower_bound=0,
)
_SEED = flags.DEFINE_integer(
    'seed', 0, 'The seed of generated data.', lower_bound=0,
    upper_bound=2**32 - 1,
)
_SIZE = flags.DEFINE_integer(
    'size', 32, 'The height and the width of the images of Pathfinder: '
    f'{", ".join(map(str, pathfinder.SIZES))}. 128 is Path-X.',
)
_NUM_IMAGES = flags.DEFINE_integer(
    'num_images', pathfinder.NUM_IMAGES,
    'The number of images of Pathfinder in all splits, a multiple of 20.',
)


def parse_flags(argv: list[str]) -> list[str]:
  """Returns what is left of the command line; exits with 2 if it is wrong."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    print(f'prepare_datasets: {error}', file=sys.stderr)
    sys.exit(2)


def prepare(name: str):
  """Prepares one data set and prints where it lies and what it holds."""
  data_dir = settings.data_directory({'data_dir': _DATA_DIR.value})
  manual = _MANUAL_DIR.value
  manual_dir = pathlib.Path(filenames.absolute(manual)) if manual else None
  options, sized = {}, {}
  if name in GENERATED:
    options |= dict(seed=_SEED.value, workers=_WORKERS.value)
  if name in SIZED:
    sized = dict(size=_SIZE.value)
    options |= sized | dict(num_images=_NUM_IMAGES.value)
  directory = DATASETS[name].prepare(data_dir, manual_dir, **options)
  for split, content in DATASETS[name].describe(data_dir, **sized).items():
    print(f'{name} {split}: {content}')
  size = sum(path.stat().st_size for path in directory.iterdir())
  print(f'{name} is in {directory} ({size:,} bytes)')


def main(argv: list[str]):
  names = argv[1:]
  unknown = [name for name in names if name not in DATASETS]
  if unknown or not names:
    complaint = f'There is no data set {unknown[0]!r}. ' if unknown else ''
    print(
        f'prepare_datasets: {complaint}Name one or more of '
        f'{", ".join(sorted(DATASETS))}.',
        file=sys.stderr,
    )
    sys.exit(2)
  # TFDS reports every file, in bars and log lines; ours say what came of it.
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    for name in names:
      prepare(name)
  except errors.UserError as error:
    print(f'prepare_datasets: {error}', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
