"""Digits: 1,797 images of 8 x 8 pixels, which come with scikit-learn.

The test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak
1998, https://doi.org/10.24432/C50P49). Nothing is downloaded.
"""

from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo.data import definition
from rnnzoo.data import examples
from rnnzoo.data import pipeline
from rnnzoo.data.images import sequences

SHARES = dict(train=0.6, validation=0.2, test=0.2)


def read() -> examples.Examples:
  """Returns the images `[1797, 8, 8]` uint8, from 0 to 16, and their labels.

  Raises:
    UserFileNotFoundError: If scikit-learn is not installed.
  """
  try:
    from sklearn import datasets  # An extra, and slow to load.
  except ImportError as error:
    raise errors.UserFileNotFoundError(
        'data.name=digits reads the images that come with scikit-learn. To '
        'install it: pip install scikit-learn'
    ) from error
  pixels, labels = datasets.load_digits(return_X_y=True)
  return examples.Examples(
      pixels.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.int32)
  )


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the images as sequences, see `sequences.dataset`.

  The splits are 60, 20 and 20 %, with the same share of each digit, and do not
  depend on the seed.
  """
  splits = examples.split(read(), SHARES)
  return sequences.dataset(
      'digits', splits, shard, seed,
      sequence=config.sequence, scale=(16.0,),
  )


DEFINITION = definition.Definition(
    task='classification', fields=sequences.FIELDS, load=load
)
