"""Selective copying: remember the data tokens among the noise, in order.

The task of the Mamba paper (Gu & Dao 2023, https://arxiv.org/abs/2312.00752,
appendix E.1) and of "Were RNNs All We Needed?" (Feng et al. 2024,
https://arxiv.org/abs/2410.01201): noise of length L with M data tokens at
random places, then M markers, where the model must repeat the data in order.
The two generators differ a little; both are here.
"""

from typing import Any

import grain
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline

VARIANTS = ('min_rnn', 'mamba')
# Raise it with every change of the examples that a seed gives.
VERSION = 1
# The defaults are the sizes in the papers.
FIELDS = dict(
    variant=fields.Field(
        str, choices=VARIANTS, default='min_rnn',
        help='The generator: that of the minRNN paper or of the Mamba paper.',
    ),
    sequence_length=fields.Field(
        int, low=1, default=4096, help='The length L of the part with noise.'
    ),
    num_tokens=fields.Field(
        int, low=1, default=16, help='The number M of tokens to copy.'
    ),
    vocab_size=fields.Field(
        int, low=1, default=16, help='The number A of token ids.'
    ),
    eval_examples=fields.Field(
        int, low=1, default=1024,
        help='The number of examples in each of validation and test.',
    ),
)


def example(
    rng: np.random.Generator,
    variant: str,
    length: int,
    num_tokens: int,
    vocab_size: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the inputs of one example and the data tokens `[M]`, int32.

  Data ids are uniform in `[1, A - 2]`; their places are a uniform subset.

  `'min_rnn'`: the marker is 0, noise is `A - 1`; data tokens are among the
  first `L` places; inputs are `[L + M]`.
  `'mamba'` (the generator in the S4 repository): noise is 0, the marker is
  `A - 1`; data tokens are among the first `L + M` places; inputs are
  `[L + 2 M]`.
  """
  if variant == 'min_rnn':
    haystack, noise, marker = length, vocab_size - 1, 0
  else:
    haystack, noise, marker = length + num_tokens, 0, vocab_size - 1
  places = rng.choice(haystack, num_tokens, replace=False, shuffle=False)
  tokens = rng.integers(1, vocab_size - 1, num_tokens, dtype=np.int32)
  inputs = np.full(haystack + num_tokens, noise, np.int32)
  inputs[np.sort(places)] = tokens
  inputs[haystack:] = marker
  return inputs, tokens


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset` with endless training examples.

  Only the last M positions count: elsewhere `targets` is 0 and `mask` is
  False. The only baseline is `chance_accuracy`, per token.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: The seed and the number of an example decide the example.

  Raises:
    UserValueError: If the sizes do not fit together.
  """
  variant, length = config.variant, config.sequence_length
  num_tokens, vocab_size = config.num_tokens, config.vocab_size
  eval_examples = config.eval_examples
  if vocab_size < 3:
    raise errors.UserValueError(
        'data.vocab_size must be at least 3 (noise, marker and one data '
        f'token), got {vocab_size}.'
    )
  if num_tokens > length:
    raise errors.UserValueError(
        f'data.num_tokens={num_tokens} data tokens do not fit into '
        f'data.sequence_length={length}.'
    )

  def batches(numbers: grain.MapDataset, split: str, count: int):

    def batch(numbers):
      pairs = [
          example(
              pipeline.generator(seed, split, number),
              variant, length, num_tokens, vocab_size,
          )
          for number in numbers
      ]
      inputs = np.stack([inputs for inputs, _ in pairs])
      targets = np.zeros_like(inputs)
      targets[:, -num_tokens:] = [tokens for _, tokens in pairs]
      mask = np.zeros(inputs.shape, bool)
      mask[:, -num_tokens:] = numbers[:, None] < count
      return {'inputs': inputs, 'targets': targets, 'mask': mask}

    return numbers.map(batch)

  total = length + num_tokens * (1 if variant == 'min_rnn' else 2)
  return pipeline.Dataset(
      name='selective_copying',
      task='language_modelling',
      unit='tokens',
      batch_size=shard.batch_size,
      sequence_length=total,
      vocab_size=vocab_size,
      per_step=True,
      train=batches(shard.train(), 'train', pipeline.ENDLESS),
      evaluation={
          split: batches(shard.evaluate(eval_examples), split, eval_examples)
          for split in ('validation', 'test')
      },
      baselines=lambda: {'chance_accuracy': 1 / (vocab_size - 2)},
      source=dict(generator='selective_copying', version=VERSION),
  )


DEFINITION = definition.Definition(
    task='language_modelling', fields=FIELDS, load=load
)
