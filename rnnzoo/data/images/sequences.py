"""Images as sequences, and what simple classifiers reach on them."""

from collections.abc import Callable, Mapping
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
    scale: tuple[float, ...],
    offset: tuple[float, ...] = (),
    convert: Callable[[np.ndarray], np.ndarray] | None = None,
    order: np.ndarray | None = None,
    class_names: tuple[str, ...] = DIGITS,
) -> pipeline.Dataset:
  """Returns images with a label each as a data set of sequences.

  The batches hold bytes. The model subtracts `offset` and divides by `scale`.

  The baselines are `majority_accuracy` and `centroid_accuracy`, see
  `examples.label_baselines`.

  Args:
    name: The name of the data set.
    splits: Images `[N, H, W]` or `[N, H, W, C]` uint8 and their labels.
    shard: The rows of this process.
    seed: Fixes the order of the training images.
    sequence: `'pixels'` (`T = H W`, `D = C`) or `'rows'` (`T = H`, `D = W C`);
      `C` is 1 for grey images.
    scale: What becomes 1 above `offset`: one number, or one for each channel.
    offset: What becomes 0, likewise; 0 if empty.
    convert: Turns images into others of the same height and width, uint8.
    order: Step t shows pixel `order[t]`; step t is pixel t if `None`.
    class_names: The names of the classes, for people.
  """
  convert = convert or (lambda images: images)
  height, width, channels = (
      *convert(splits['train'].inputs[:1]).shape[1:], 1
  )[:3]
  shape = (height, width * channels)
  if sequence == 'pixels':
    shape = (height * width, channels)
  elif channels > 1:
    scale, offset = scale * width, offset * width

  def vectors(images):
    """Returns images as sequences `[n, T, D]` uint8."""
    x = convert(images).reshape(len(images), *shape)
    return x if order is None else x[:, order]

  def normalized(images):
    low, size = np.array(offset or 0, np.float32), np.array(scale, np.float32)
    return ((vectors(images) - low) / size).reshape(len(images), -1)

  return examples.dataset(
      splits, shard, seed,
      transform=vectors,
      name=name,
      task='classification',
      unit=sequence,
      sequence_length=shape[0],
      in_features=shape[1],
      input_scale=scale,
      input_offset=offset,
      num_classes=len(class_names),
      class_names=class_names,
      baselines=functools.partial(
          examples.label_baselines, splits, vectors=normalized
      ),
  )
