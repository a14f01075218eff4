"""CIFAR-10, read pixel by pixel: "Image" of the Long Range Arena, and sCIFAR.

`rnnzoo/data/builders/cifar10.py` prepares the original archive once.
`data.color=grey` is the task of the Long Range Arena
(https://arxiv.org/abs/2011.04006), one number a step; `data.color=rgb` is
sCIFAR, three numbers a step. Published numbers of the two differ.

The splits are those of the arena: the first 90 % of the 50,000 training images
train, the last 10 % are for validation, and the usual 10,000 test. There "the
first" are those of TFDS, in its order; here they are those of the original
files. Images are neither cropped nor flipped.
"""

import pathlib
from typing import Any

import numpy as np
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import examples
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.images import sequences

# The share of the eye's sensitivity that a colour has (ITU-R BT.601).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def grey(images: np.ndarray) -> np.ndarray:
  """Returns `[n, H, W, 3]` uint8 as grey images `[n, H, W]` uint8.

  >>> grey(np.array([[[[10, 0, 0], [0, 10, 0], [0, 0, 10]]]], np.uint8))
  array([[[3, 6, 1]]], dtype=uint8)
  """
  return np.rint(images.astype(np.float32) @ LUMA).astype(np.uint8)


# Mean and standard deviation as in the code of S4, times 255 for colours.
OFFSETS = dict(grey=(122.6,), rgb=(125.307, 122.961, 113.8575))
SCALES = dict(grey=(61.0,), rgb=(62.985, 61.965, 66.555))


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the images as sequences, see `sequences.dataset`.

  Raises:
    UserError: If the data is missing or damaged.
  """
  # TFDS is slow to load, and few data sets need it.
  from rnnzoo.data.builders import cifar10

  read = cifar10.read(settings.data_directory(config))
  (images, labels), (test_images, test_labels) = read['train'], read['test']
  count = len(images) * 9 // 10
  splits = dict(
      train=examples.Examples(images[:count], labels[:count]),
      validation=examples.Examples(images[count:], labels[count:]),
      test=examples.Examples(test_images, test_labels),
  )
  return sequences.dataset(
      'cifar10', splits, shard, seed,
      sequence=config.sequence, class_names=cifar10.CLASSES,
      offset=OFFSETS[config.color], scale=SCALES[config.color],
      convert=grey if config.color == 'grey' else None,
  )


def write_fixture(directory: pathlib.Path, config: Any):
  """Prepares a few images of bars, see `Definition.write_fixture`."""
  del config
  from rnnzoo.data.builders import cifar10

  settings.mark_fixture(directory)
  cifar10.prepare_fixture(directory)


DEFINITION = definition.Definition(
    task='classification',
    fields=dict(
        sequences.FIELDS,
        color=fields.Field(
            str, choices=tuple(SCALES), default='grey',
            help='What a pixel is: one number (grey) or three (rgb).',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
