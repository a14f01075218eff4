"""What data sets share whose examples are drawn one by one, without end.

A set gives one function, `example`; `dataset` makes batches of what it draws,
for training, for `validation` and `test`, and for longer rows: with
`data.test_lengths=(128, 256)` there are splits `test_128` and `test_256`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import pipeline

# The fields that `dataset` reads.
FIELDS = dict(
    eval_examples=fields.Field(
        int, low=1, default=1024,
        help='The number of examples in each of validation and test.',
    ),
    test_lengths=fields.Field(
        tuple, items=int, low=1, default=(),
        help='The lengths of further test splits: 128 makes test_128.',
    ),
    test_examples=fields.Field(
        int, low=1, default=256,
        help='The number of examples in each split of test_lengths.',
    ),
)


class Example(NamedTuple):
  """One sequence of `n` steps.

  Attributes:
    inputs: Tokens `[n]`, or vectors `[n, D]`.
    targets: One for each step, `[n]`.
    counted: Which targets count, bool `[n]`.
  """

  inputs: np.ndarray
  targets: np.ndarray
  counted: np.ndarray


def dataset(
    config: Any,
    shard: pipeline.Shard,
    seed: int,
    example: Callable[[np.random.Generator, int | None], Example],
    steps: Callable[[int | None], int],
    *,
    ragged: bool = False,
    **attributes: Any,
) -> pipeline.Dataset:
  """Returns a generated task as a `Dataset` with endless training examples.

  Seed, split and number decide an example.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: See above.
    example: Draws an `Example`. Its second argument is a member of
      `test_lengths`, or `None` in training, validation and test.
    steps: Returns how many steps a row has, given that second argument.
    ragged: Whether examples may be shorter than their rows. Then the rows are
      padded, and `input_mask` says which steps exist.
    **attributes: The other attributes of the `Dataset`.

  Raises:
    UserValueError: If a length is there twice.
  """
  lengths = tuple(config.test_lengths)
  if len(set(lengths)) < len(lengths):
    raise errors.UserValueError(
        f'data.test_lengths must have no length twice, got {lengths}.'
    )

  def batches(numbers: grain.MapDataset, split, count, length):
    total = steps(length)

    def batch(numbers):
      drawn = [
          example(pipeline.generator(seed, split, number), length)
          for number in numbers
      ]
      arrays = {
          name: np.zeros((len(drawn), total, *u.shape[1:]), u.dtype)
          for name, u in drawn[0]._asdict().items()
      }
      exists = np.zeros((len(drawn), total), bool)
      for row, one in enumerate(drawn):
        exists[row, : len(one.inputs)] = True
        for name, values in one._asdict().items():
          arrays[name][row, : len(values)] = values
      mask = arrays.pop('counted') & (numbers < count)[:, None]
      if ragged:
        arrays['input_mask'] = exists
      if split == 'train' and mask.all():
        return arrays
      return arrays | {'mask': mask}

    return numbers.map(batch)

  evaluation = {
      split: batches(
          shard.evaluate(config.eval_examples), split, config.eval_examples,
          None,
      )
      for split in ('validation', 'test')
  }
  tokens = max(shard.batch_size * steps(None), pipeline.LONG_BATCH_TOKENS)
  for length in lengths:
    rows = shard.at_most(tokens // steps(length))
    evaluation[f'test_{length}'] = batches(
        rows.evaluate(config.test_examples), f'test_{length}',
        config.test_examples, length,
    )
  return pipeline.Dataset(
      batch_size=shard.batch_size,
      sequence_length=steps(None),
      per_step=True,
      train=batches(shard.train(), 'train', pipeline.ENDLESS, None),
      evaluation=evaluation,
      split_lengths={f'test_{length}': steps(length) for length in lengths},
      **attributes,
  )
