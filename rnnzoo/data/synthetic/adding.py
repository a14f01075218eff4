"""The adding problem: add the two numbers that are marked.

The task of "Long short-term memory" (Hochreiter & Schmidhuber 1997,
https://doi.org/10.1162/neco.1997.9.8.1735), in the form in which it is used
since "Unitary evolution recurrent neural networks" (Arjovsky et al. 2016,
https://arxiv.org/abs/1511.06464): each step has a number from [0, 1] and a
marker, which is 1 at one step of the first half and one step of the second half
and 0 at all others. Lengths are drawn from a range, as in the original.
"""

from typing import Any

import grain
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline

# Raise it with every change of the examples that a seed gives.
VERSION = 1
FIELDS = dict(
    min_length=fields.Field(
        int, low=2, default=50, help='The length of the shortest sequences.'
    ),
    max_length=fields.Field(
        int, low=2, default=100, help='The length of the longest sequences.'
    ),
    eval_examples=fields.Field(
        int, low=1, default=1024,
        help='The number of examples in each of validation and test.',
    ),
)


def example(
    rng: np.random.Generator, min_length: int, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns inputs `[T, 2]` (numbers, markers) and the sum `[1]`, float32."""
  length = int(rng.integers(min_length, max_length, endpoint=True))
  half = length // 2
  inputs = np.zeros((length, 2), np.float32)
  inputs[:, 0] = rng.random(length, np.float32)
  marked = [rng.integers(half), rng.integers(half, length)]
  inputs[marked, 1] = 1
  return inputs, inputs[marked, 0].sum(keepdims=True)


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset` with endless training examples.

  Rows have `max_length` steps. Where lengths differ, `input_mask` says which
  steps exist; the others are 0. The baseline `always_one_mse` is the mean
  squared error of always answering 1, the mean of the targets: it is their
  variance, 1/6.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: The seed and the number of an example decide the example.

  Raises:
    UserValueError: If the shortest length is larger than the longest.
  """
  shortest, longest = config.min_length, config.max_length
  if shortest > longest:
    raise errors.UserValueError(
        f'data.min_length={shortest} is larger than data.max_length={longest}.'
    )

  def batches(numbers: grain.MapDataset, split: str, count: int):

    def batch(numbers):
      inputs = np.zeros((len(numbers), longest, 2), np.float32)
      targets = np.zeros((len(numbers), 1), np.float32)
      exists = np.zeros((len(numbers), longest), bool)
      for row, number in enumerate(numbers):
        rng = pipeline.generator(seed, split, number)
        values, targets[row] = example(rng, shortest, longest)
        inputs[row, : len(values)] = values
        exists[row, : len(values)] = True
      arrays = dict(inputs=inputs, targets=targets)
      if shortest < longest:
        arrays['input_mask'] = exists
      if split != 'train':
        arrays['mask'] = numbers < count
      return arrays

    return numbers.map(batch)

  count = config.eval_examples
  return pipeline.Dataset(
      name='adding',
      task='regression',
      batch_size=shard.batch_size,
      sequence_length=longest,
      in_features=2,
      out_features=1,
      train=batches(shard.train(), 'train', pipeline.ENDLESS),
      evaluation={
          split: batches(shard.evaluate(count), split, count)
          for split in ('validation', 'test')
      },
      baselines=lambda: {'always_one_mse': 1 / 6},
      source=dict(generator='adding', version=VERSION),
  )


DEFINITION = definition.Definition(
    task='regression', fields=FIELDS, load=load
)
