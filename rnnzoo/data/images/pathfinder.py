"""Pathfinder: are two dots the ends of one dashed contour? Read by pixels.

The task of the Long Range Arena, https://arxiv.org/abs/2011.04006. With
`size=128` it is Path-X. `source='generated'` reads images of our own generator,
`'release'` those that the Long Range Arena published. Published numbers are
those of the release; images that we generate follow the same rules, but are
others. `rnnzoo/data/builders/pathfinder.py` and `pathfinder_release.py` prepare
them once.
"""

import pathlib
from typing import Any

from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import examples
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.images import sequences

SOURCES = ('generated', 'release')
CLASSES = ('two contours', 'one contour')


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the images as sequences of pixels, see `sequences.dataset`.

  The model reads numbers from -1 to 1, as in the code of S4 and S5.

  Raises:
    UserError: If the data is missing or damaged, or there is no such size.
  """
  # TFDS is slow to load, and few data sets need it.
  from rnnzoo.data.builders import pathfinder
  from rnnzoo.data.builders import pathfinder_release

  pathfinder.check_size('data.size', config.size)
  builders = dict(generated=pathfinder, release=pathfinder_release)
  read = builders[config.source].read(
      settings.data_directory(config), config.size
  )
  splits = {name: examples.Examples(*arrays) for name, arrays in read.items()}
  return sequences.dataset(
      'pathfinder', splits, shard, seed,
      sequence='pixels', offset=(127.5,), scale=(127.5,), class_names=CLASSES,
  )


def write_fixture(directory: pathlib.Path, config: Any):
  """Prepares a few images of both sources, see `Definition.write_fixture`."""
  from rnnzoo.data.builders import pathfinder
  from rnnzoo.data.builders import pathfinder_release

  size = settings.field(config, 'size', 32)
  pathfinder.check_size('data.size', size)
  settings.mark_fixture(directory)
  for builder in (pathfinder, pathfinder_release):
    builder.prepare_fixture(directory, size)


DEFINITION = definition.Definition(
    task='classification',
    fields=dict(
        size=fields.Field(
            int, low=1, default=32,
            help='The height and the width of an image: 32, 128 (Path-X), or '
            '16 (small and easy, to try out programs).',
        ),
        source=fields.Field(
            str, choices=SOURCES, default='generated',
            help='Images of our own generator, or those of the release of the '
            'Long Range Arena.',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
