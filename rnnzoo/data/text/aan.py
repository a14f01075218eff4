"""Pairs of papers: the task "Retrieval" of the Long Range Arena (LRA).

`rnnzoo/data/builders/aan.py` prepares the three files of LRA's release once.
"""

import pathlib
from typing import Any

from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.text import characters


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns pairs of papers as rows of characters, with their labels.

  The label is 1 if one paper of a pair cites the other. The splits are those of
  the release. The tokens are those of the characters of the training papers.

  Raises:
    UserError: If the data is missing or damaged.
  """
  # TFDS is slow to load, and few data sets need it.
  from rnnzoo.data.builders import aan

  read = aan.read(settings.data_directory(config))
  length = config.sequence_length
  known = characters.Characters.of_chunks(
      read['train'].chunks, config.min_frequency, length, config.append_eos
  )
  splits = {
      # What is encoded is not needed any more: it may be a gigabyte.
      split: characters.examples_of(read.pop(split), known, length)
      for split in tuple(read)
  }
  return characters.dataset(
      splits, known, shard, seed,
      buckets=config.buckets,
      name='aan',
      task='matching',
      sequences=2,
      class_names=('no citation', 'citation'),
  )


def write_fixture(directory: pathlib.Path, config: Any):
  """Prepares a few short pairs, see `Definition.write_fixture`."""
  del config
  from rnnzoo.data.builders import aan

  settings.mark_fixture(directory)
  aan.prepare_fixture(directory)


DEFINITION = definition.Definition(
    task='matching',
    fields=characters.data_fields(4000, min_frequency=1, longest=4000),
    load=load,
    write_fixture=write_fixture,
)
