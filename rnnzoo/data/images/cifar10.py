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
# Mean and standard deviation, as in the code of S4: of grey pixels from 0 to
# 255, and of red, green and blue from 0 to 1.
GREY = (122.6, 61.0)
RGB = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))


def grey(images: np.ndarray) -> np.ndarray:
  """Returns `[n, H, W, 3]` uint8 as normalised grey images `[n, H, W]`.

  >>> float(grey(np.full([1, 1, 1, 3], 184, np.uint8))[0, 0, 0].round(3))
  1.007
  """
  mean, deviation = map(np.float32, GREY)
  return (images.astype(np.float32) @ LUMA - mean) / deviation


def rgb(images: np.ndarray) -> np.ndarray:
  """Returns `[n, H, W, 3]` uint8 as normalised float32 `[n, H, W, 3]`.

  >>> rgb(np.full([1, 1, 1, 3], 255, np.uint8)).round(2).tolist()
  [[[[2.06, 2.13, 2.12]]]]
  """
  mean, deviation = (np.array(values, np.float32) for values in RGB)
  return (images.astype(np.float32) / np.float32(255) - mean) / deviation


COLORS = dict(grey=grey, rgb=rgb)


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
      sequence=config.sequence, normalize=COLORS[config.color],
      class_names=cifar10.CLASSES,
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
            str, choices=tuple(COLORS), default='grey',
            help='What a pixel is: one number (grey) or three (rgb).',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
