"""Multi-query associative recall: name the value that came with a key.

The task of "Zoology" (Arora et al. 2023, https://arxiv.org/abs/2312.04927), at
which language models with a small state fall behind attention. A sequence
starts with M pairs of a key and a value. Later each key comes once more, and
the model must answer with its value. The gaps before these queries are even and
mostly short: each is drawn at most once, with a probability proportional to
`gap**(power - 1)`.
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
# The defaults are the paper's smallest setting (the paper tests on 3000
# examples).
FIELDS = dict(
    sequence_length=fields.Field(
        int, low=1, default=64, help='The length T of a sequence.'
    ),
    num_pairs=fields.Field(
        int, low=1, default=4, help='The number M of pairs of key and value.'
    ),
    vocab_size=fields.Field(
        int, low=1, default=8192, help='The number V of token ids.'
    ),
    power=fields.Field(
        float, low=-10, high=10, default=0.01,
        help='The exponent of the gaps before queries: a smaller one makes '
        'them shorter.',
    ),
    random_non_queries=fields.Field(
        bool, default=False,
        help='Fill the places without a key or a value with random ids, not '
        'with 0.',
    ),
    eval_examples=fields.Field(
        int, low=1, default=1024,
        help='The number of examples in each of validation and test.',
    ),
)


def example(
    rng: np.random.Generator,
    length: int,
    num_pairs: int,
    vocab_size: int,
    power: float,
    random_non_queries: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns inputs `[T]`, places of queries `[M]`, and values `[M]`, int32.

  Keys are ids in `[1, V/2 - 1]`, values are ids in `[V/2, V - 1]`, and no id
  comes twice. All other places hold 0, or any id if `random_non_queries`.
  """
  half = vocab_size // 2
  pick = lambda low, high: low + rng.choice(
      high - low, num_pairs, replace=False
  ).astype(np.int32)
  keys, values = pick(1, half), pick(half, vocab_size)
  start = 2 * num_pairs
  gaps = np.arange(1, (length - start) // 2 + 1)
  chances = gaps ** (power - 1.0)
  places = start + 2 * rng.choice(
      len(gaps), num_pairs, replace=False, p=chances / chances.sum()
  ).astype(np.int32)
  inputs = np.zeros(length, np.int32)
  if random_non_queries:
    inputs = rng.integers(vocab_size, size=length, dtype=np.int32)
  inputs[0:start:2], inputs[1:start:2], inputs[places] = keys, values, keys
  return inputs, places, values


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset` with endless training examples.

  Only the queries count: elsewhere `targets` is 0 and `mask` is False. The
  baselines are `chance_accuracy`, for a guess among all ids that can be values,
  and `any_value_accuracy`, for a guess among the M values of the example.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: The seed and the number of an example decide the example.

  Raises:
    UserValueError: If the sizes do not fit together.
  """
  length, num_pairs = config.sequence_length, config.num_pairs
  vocab_size, eval_examples = config.vocab_size, config.eval_examples
  if 4 * num_pairs > length:
    raise errors.UserValueError(
        f'data.num_pairs={num_pairs} pairs and as many queries, two places '
        f'each, do not fit into data.sequence_length={length}.'
    )
  if vocab_size // 2 <= num_pairs:
    raise errors.UserValueError(
        f'data.vocab_size={vocab_size} has too few ids for '
        f'data.num_pairs={num_pairs} keys and as many values: at least '
        f'{2 * num_pairs + 2} are needed.'
    )

  def batches(numbers: grain.MapDataset, split: str, count: int):

    def batch(numbers):
      inputs = np.zeros((len(numbers), length), np.int32)
      targets, mask = np.zeros_like(inputs), np.zeros(inputs.shape, bool)
      for row, number in enumerate(numbers):
        inputs[row], places, values = example(
            pipeline.generator(seed, split, number),
            length, num_pairs, vocab_size, config.power,
            config.random_non_queries,
        )
        targets[row, places], mask[row, places] = values, number < count
      return {'inputs': inputs, 'targets': targets, 'mask': mask}

    return numbers.map(batch)

  return pipeline.Dataset(
      name='mqar',
      task='language_modelling',
      unit='tokens',
      batch_size=shard.batch_size,
      sequence_length=length,
      vocab_size=vocab_size,
      per_step=True,
      train=batches(shard.train(), 'train', pipeline.ENDLESS),
      evaluation={
          split: batches(shard.evaluate(eval_examples), split, eval_examples)
          for split in ('validation', 'test')
      },
      baselines=lambda: {
          'chance_accuracy': 1 / (vocab_size - vocab_size // 2),
          'any_value_accuracy': 1 / num_pairs,
      },
      source=dict(generator='mqar', version=VERSION),
  )


DEFINITION = definition.Definition(
    task='language_modelling', fields=FIELDS, load=load
)
