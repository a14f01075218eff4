"""Grey images as sequences, and what simple classifiers reach on them."""

from collections.abc import Mapping
import functools

import numpy as np
from rnnzoo import fields
from rnnzoo.data import examples
from rnnzoo.data import pipeline

SEQUENCES = ('pixels', 'rows')
FIELDS = dict(
    sequence=fields.Field(
        str, choices=SEQUENCES, default='pixels',
        help='What a step reads: one of the pixels, row by row, or one of the '
        'rows.',
    ),
)
DIGITS = tuple(map(str, range(10)))


def dataset(
    name: str,
    splits: Mapping[str, examples.Examples],
    shard: pipeline.Shard,
    seed: int,
    *,
    sequence: str,
    white: int,
    order: np.ndarray | None = None,
) -> pipeline.Dataset:
  """Returns images of the ten digits as a data set of sequences.

  The batches hold the stored bytes. The model divides them by `white`.

  The baselines are `majority_accuracy` and `centroid_accuracy`, see
  `examples.label_baselines`.

  Args:
    name: The name of the data set.
    splits: Images `[N, H, W]` uint8 and their labels.
    shard: The rows of this process.
    seed: Fixes the order of the training images.
    sequence: `'pixels'` (`T = H W`, `D = 1`) or `'rows'` (`T = H`, `D = W`).
    white: The largest value of a pixel, which becomes 1 in the model.
    order: Step t shows pixel `order[t]`; step t is pixel t if `None`.
  """
  height, width = splits['train'].inputs.shape[1:]
  shape = (height * width, 1) if sequence == 'pixels' else (height, width)

  def vectors(images):
    """Returns images `[n, H, W]` as sequences `[n, T, D]`."""
    x = images.reshape(len(images), *shape)
    return x if order is None else x[:, order]

  return examples.dataset(
      splits, shard, seed,
      transform=vectors,
      name=name,
      task='classification',
      unit=sequence,
      sequence_length=shape[0],
      in_features=shape[1],
      input_scale=(float(white),),
      num_classes=len(DIGITS),
      class_names=DIGITS,
      baselines=functools.partial(
          examples.label_baselines, splits,
          vectors=lambda images: images.reshape(len(images), -1) / white,
      ),
  )
