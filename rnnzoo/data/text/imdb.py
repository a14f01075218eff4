"""Film reviews as characters: the task "Text" of the Long Range Arena (LRA).

`rnnzoo/data/builders/imdb.py` prepares the original archive once.
"""

import pathlib
from typing import Any

from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import examples
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.text import characters

SHARES = dict(train=0.9, validation=0.1)


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the reviews as rows of characters, with their labels.

  There are 25,000 reviews to train on and 25,000 for the test. With
  `data.validation='train'` a tenth of the training reviews is the validation
  split, the same for all seeds and half of it positive. The pipelines of S4 and
  S5 select on the test reviews instead: `data.validation='test'` does so.

  The tokens are those of the characters of all 25,000 training reviews, so they
  do not depend on `data.validation`.

  Raises:
    UserError: If the data is missing or damaged.
  """
  # TFDS is slow to load, and few data sets need it.
  from rnnzoo.data.builders import imdb

  read = imdb.read(settings.data_directory(config))
  length = config.sequence_length
  known = characters.Characters.of_chunks(
      read['train'].chunks, config.min_frequency, length, config.append_eos
  )
  train, test = (
      characters.examples_of(read[split], known, length)
      for split in imdb.SPLITS
  )
  splits = dict(train=train, validation=test, test=test)
  if config.validation == 'train':
    splits |= examples.split(train, SHARES)
  return characters.dataset(
      splits, known, shard, seed,
      buckets=config.buckets,
      name='imdb',
      task='classification',
      class_names=('negative', 'positive'),
  )


def write_fixture(directory: pathlib.Path, config: Any):
  """Prepares a few short reviews, see `Definition.write_fixture`."""
  del config
  from rnnzoo.data.builders import imdb

  settings.mark_fixture(directory)
  imdb.prepare_fixture(directory)


DEFINITION = definition.Definition(
    task='classification',
    fields=dict(
        characters.data_fields(4096, min_frequency=15),
        validation=fields.Field(
            str, choices=('train', 'test'), default='train',
            help='The reviews that choose the checkpoint: a tenth of the '
            'training reviews, or the test reviews, as S4 and S5 do.',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
