"""Sequential MNIST: the handwritten digits, read pixel by pixel.

`rnnzoo/data/builders/smnist.py` prepares the four original files once. The
permuted form (psMNIST) is `data.permutation`, see `PERMUTATIONS`.
"""

import pathlib
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import examples
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.images import sequences

PIXELS = 784
# One of 12 training images is for validation: 5,000 in all.
VALIDATION = 12


def bit_reversal() -> np.ndarray:
  """Returns the pixels in the order of their reversed binary numbers.

  Numbers have the ten bits that 784 needs; those of 784 and more are left out.
  """
  numbers = np.arange(1024)
  reversed_bits = np.zeros_like(numbers)
  for i in range(10):
    reversed_bits |= ((numbers >> i) & 1) << (9 - i)
  return reversed_bits[reversed_bits < PIXELS]


# Published numbers use different permutations: the code of S4 reverses bits,
# that of the LMU draws one with the seed 92916.
PERMUTATIONS = {
    'bit_reversal': bit_reversal,
    'seed_92916': lambda: np.random.RandomState(92916).permutation(PIXELS),
}


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the images as sequences, see `sequences.dataset`.

  Of the 60,000 training images the last 5,000 are the validation split; the
  test split is the usual one of 10,000.

  Raises:
    UserError: If the data is missing or damaged, or rows are to be permuted.
  """
  if config.permutation and config.sequence != 'pixels':
    raise errors.UserValueError(
        'data.permutation is a permutation of pixels; it needs '
        'data.sequence=pixels.'
    )
  # TFDS is slow to load, and few data sets need it.
  from rnnzoo.data.builders import smnist

  read = smnist.read(settings.data_directory(config))
  (images, labels), (test_images, test_labels) = read['train'], read['test']
  count = len(images) - len(images) // VALIDATION
  splits = dict(
      train=examples.Examples(images[:count], labels[:count]),
      validation=examples.Examples(images[count:], labels[count:]),
      test=examples.Examples(test_images, test_labels),
  )
  order = PERMUTATIONS[config.permutation]() if config.permutation else None
  return sequences.dataset(
      'smnist', splits, shard, seed,
      sequence=config.sequence, scale=(255.0,), order=order,
  )


def write_fixture(directory: pathlib.Path, config: Any):
  """Prepares a few images of bars, see `Definition.write_fixture`."""
  del config
  from rnnzoo.data.builders import smnist

  settings.mark_fixture(directory)
  smnist.prepare_fixture(directory)


DEFINITION = definition.Definition(
    task='classification',
    fields=dict(
        sequences.FIELDS,
        permutation=fields.Field(
            str, choices=('', *PERMUTATIONS), default='',
            help='A fixed permutation of the pixels (psMNIST); none if empty.',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
