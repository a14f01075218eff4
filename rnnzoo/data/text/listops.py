"""ListOps of the Long Range Arena: the value of a nested list of operations.

`MAX 2 9 MIN 4 7 X 0 X` has the value 9, see `rnnzoo/data/builders/
listops_trees.py`. The data is generated once by our own generator, which
follows the published rules, or prepared from the release.
"""

import pathlib
from typing import Any

import numpy as np
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import examples
from rnnzoo.data import pipeline
from rnnzoo.data import settings

SOURCES = ('generated', 'release')
FIELDS = dict(
    source=fields.Field(
        str, choices=SOURCES, default='generated',
        help='Which expressions: those that scripts/prepare_datasets.py '
        'listops generates, or those of the release of the Long Range Arena '
        '(listops_release).',
    ),
    max_length=fields.Field(
        int, low=1, default=2000,
        help='The length of the rows. Longer expressions are cut, which '
        'changes the task; there are none in the full data.',
    ),
    buckets=examples.BUCKETS,
)


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns expressions `[b, T]` of 15 tokens, and their values `[b]`.

  Rows have `max_length` steps. `input_mask` says which of them exist; the
  others are 0 and have no token of their own. The baseline is
  `majority_accuracy`, see `examples.label_baselines`.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: Fixes the order of the training examples.

  Raises:
    UserError: If the data is missing or damaged.
  """
  # TFDS is slow to load, and few data sets need it.
  from rnnzoo.data.builders import listops
  from rnnzoo.data.builders import listops_release
  from rnnzoo.data.builders import listops_trees

  builder = listops if config.source == 'generated' else listops_release
  splits = {
      split: _padded(found, config.max_length)
      for split, found in builder.read(settings.data_directory(config)).items()
  }
  return examples.dataset(
      splits, shard, seed,
      buckets=config.buckets,
      name='listops',
      task='classification',
      unit='tokens',
      sequence_length=config.max_length,
      vocab_size=len(listops_trees.TOKENS),
      num_classes=listops_trees.DIGITS,
      class_names=listops_trees.TOKENS[: listops_trees.DIGITS],
      baselines=lambda: examples.label_baselines(splits),
  )


def _padded(found, length):
  """Returns expressions as rows `[N, length]` of uint8 tokens."""
  ends = np.cumsum(found.lengths, dtype=np.int64)
  lengths = np.minimum(found.lengths, length)
  rows = np.zeros((len(lengths), length), np.uint8)
  for row, end, whole, part in zip(
      rows, ends, found.lengths, lengths, strict=True
  ):
    row[:part] = found.tokens[end - whole : end - whole + part]
  return examples.Examples(rows, found.labels.astype(np.int32), lengths)


def write_fixture(directory: pathlib.Path, config: Any):
  """Prepares short expressions of both sources, see `Definition`."""
  del config
  from rnnzoo.data.builders import listops
  from rnnzoo.data.builders import listops_release

  settings.mark_fixture(directory)
  listops.prepare_fixture(directory)
  listops_release.prepare_fixture(directory)


DEFINITION = definition.Definition(
    task='classification',
    fields=FIELDS,
    load=load,
    write_fixture=write_fixture,
)
