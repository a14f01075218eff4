"""Induction heads: what came after the trigger the first time?

The task of the Mamba paper (Gu & Dao 2023, https://arxiv.org/abs/2312.00752,
section 4.1.2 and appendix E.1), from H3 (Dao et al. 2022,
https://arxiv.org/abs/2212.14052; generator in
https://github.com/HazyResearch/safari): a sequence of T tokens from a
vocabulary of V. The last one is a special token, the trigger, which also comes
once before. The target of the last step is the token that followed it there.

The other tokens are uniform among the V - 1 ordinary ones, and the place of the
first trigger is uniform among those before the last three. The paper has
V = 16, trains at T = 256 and tests from 2^6 to 2^20. It does not say whether
the 16 include the trigger; here they do, and its id is 15.
"""

from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data.synthetic import generated

# Raise it with every change of the examples that a seed gives.
VERSION = 1
_SHORTEST = 4
# The defaults are the sizes in the paper.
FIELDS = dict(
    sequence_length=fields.Field(
        int, low=_SHORTEST, default=256, help='The length T of a sequence.'
    ),
    vocab_size=fields.Field(
        int, low=2, default=16,
        help='The number V of token ids, with that of the trigger.',
    ),
    **generated.FIELDS,
)


def example(
    rng: np.random.Generator, length: int, vocab_size: int
) -> generated.Example:
  """Returns inputs and targets `[T]`, int32; only the last target counts."""
  trigger = vocab_size - 1
  inputs = rng.integers(trigger, size=length, dtype=np.int32)
  place = rng.integers(length - 3)
  inputs[[place, -1]] = trigger
  targets = np.zeros_like(inputs)
  targets[-1] = inputs[place + 1]
  return generated.Example(inputs, targets, np.arange(length) == length - 1)


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset` with endless training examples.

  Only the last step counts. The only baseline is `chance_accuracy`, for a guess
  among the ordinary tokens.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: Seed, split and number decide an example.

  Raises:
    UserValueError: If a length is too short for the task.
  """
  length, vocab_size = config.sequence_length, config.vocab_size
  if min(config.test_lengths, default=_SHORTEST) < _SHORTEST:
    raise errors.UserValueError(
        f'data.test_lengths must be at least {_SHORTEST} for two triggers and '
        f'a token between them, got {min(config.test_lengths)}.'
    )
  return generated.dataset(
      config, shard, seed,
      lambda rng, longer: example(rng, longer or length, vocab_size),
      lambda longer: longer or length,
      name='induction_heads',
      task='language_modelling',
      unit='tokens',
      vocab_size=vocab_size,
      baselines=lambda: {'chance_accuracy': 1 / (vocab_size - 1)},
      source=dict(generator='induction_heads', version=VERSION),
  )


DEFINITION = definition.Definition(
    task='language_modelling', fields=FIELDS, load=load
)
