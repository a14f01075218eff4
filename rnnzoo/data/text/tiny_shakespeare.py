"""Tiny Shakespeare: the selection from the plays that char-rnn came with.

The text is prepared once by `rnnzoo/data/builders/tiny_shakespeare.py`.
"""

import pathlib
from typing import Any

from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.text import corpus


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the three splits of TFDS's `tiny_shakespeare` 1.0.0.

  There is one more evaluation split, `nanogpt_validation`: validation and test
  together are the last tenth of the text, which nanoGPT reports.
  """
  # TFDS is slow to load, and few data sets need it.
  from rnnzoo.data.builders import tiny_shakespeare

  texts = tiny_shakespeare.read(settings.data_directory(config))
  return corpus.load(
      'tiny_shakespeare', texts, config, shard, seed,
      joined={'nanogpt_validation': ('validation', 'test')},
  )


def write_fixture(directory: pathlib.Path, config: Any):
  """Prepares a small text, see `Definition.write_fixture`."""
  del config
  from rnnzoo.data.builders import tiny_shakespeare

  settings.mark_fixture(directory)
  tiny_shakespeare.prepare_fixture(directory, corpus.fixture_text())


DEFINITION = definition.Definition(
    task='language_modelling',
    fields=corpus.FIELDS,
    load=load,
    write_fixture=write_fixture,
)
