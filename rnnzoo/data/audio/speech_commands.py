"""Speech Commands: which word is said, read sample by sample.

Warden (2018), https://arxiv.org/abs/1804.03209, version 0.02, prepared once by
`rnnzoo/data/builders/speech_commands.py`. `data.words=35` is SC35, all words of
the data; `data.words=10` is SC10: yes, no, up, down, left, right, on, off, stop
and go, without clips of other words. The parts are those of the lists in the
archive; what is in neither list is for training.

A sequence is one second, 16,000 samples. A shorter clip is filled up with zeros
at its end. These are steps as all others: there is no mask. `data.rate=8000`
takes every second sample, without a filter. The model normalises samples with
the mean and the standard deviation of all training samples of these words.

Clips are read from the disk when a batch needs them.
"""

import functools
import pathlib
from typing import Any

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import examples
from rnnzoo.data import pipeline
from rnnzoo.data import settings

WORDS = (10, 35)
RATES = (16_000, 8_000)


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the clips as sequences `[b, T, 1]` with a label each.

  The baseline is `majority_accuracy`, see `examples.label_baselines`.

  Raises:
    UserError: If the data is missing or damaged, or a field is wrong.
  """
  for name, known in (('words', WORDS), ('rate', RATES)):
    if getattr(config, name) not in known:
      raise errors.UserValueError(
          f'data.{name} must be {" or ".join(map(str, known))}, got '
          f'{getattr(config, name)}.'
      )
  # TFDS is slow to load, and few data sets need it.
  from rnnzoo.data.builders import speech_commands

  words = speech_commands.WORDS[: config.words]
  content = speech_commands.read(settings.data_directory(config), words)
  splits = {
      part: examples.Examples(
          content.clips[part],  # pyright: ignore[reportArgumentType]
          content.labels[part],
      )
      for part in speech_commands.PARTS
  }
  every = speech_commands.RATE // config.rate
  return examples.dataset(
      splits, shard, seed,
      transform=lambda clips: clips[:, ::every, None],
      input_offset=(content.mean,),
      input_scale=(content.deviation,),
      source=dict(
          examples={part: len(u) for part, u in splits.items()},
          sha256=content.sha256,
      ),
      name='speech_commands',
      task='classification',
      unit='time steps',
      sequence_length=config.rate,
      in_features=1,
      num_classes=len(words),
      class_names=words,
      baselines=functools.partial(examples.label_baselines, splits),
  )


def write_fixture(directory: pathlib.Path, config: Any):
  """Prepares a few tones, see `Definition.write_fixture`."""
  del config
  from rnnzoo.data.builders import speech_commands

  settings.mark_fixture(directory)
  speech_commands.prepare_fixture(directory)


DEFINITION = definition.Definition(
    task='classification',
    fields=dict(
        words=fields.Field(
            int, low=10, high=35, default=35,
            help='How many words there are: 10 (SC10) or 35 (SC35).',
        ),
        rate=fields.Field(
            int, low=8000, high=16_000, default=16_000,
            help='Samples a second: 16000, or 8000 for every second one.',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
