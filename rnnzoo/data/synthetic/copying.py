"""Copying: repeat a pattern of random bits after a pause.

The copy task of minimal-LRU (https://github.com/NicolasZucchet/minimal-LRU),
the repository of the Linear Recurrent Unit in JAX: for P = 20 steps the input
has 7 random bits; then come a pause of 7 steps, one step with the signal to
answer, and P steps without input in which the network must give the pattern, in
order. The signal is the eighth input, which is 0 elsewhere, and the 7 bits are
0 outside of the pattern. A row has `2 P + 8` steps.

There the outputs are the 7 bits, each with a loss of its own. Here the target
of a step is one of the 2^7 patterns, so that `accuracy` counts whole patterns.
The repository draws 20,000 training examples once; here training never ends,
and 20,000 examples are 312 steps of 64.

In a split `test_<length>` the pattern has `length` steps.
"""

from typing import Any

import numpy as np
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data.synthetic import generated

# Raise it with every change of the examples that a seed gives.
VERSION = 1
# The defaults are the sizes in the repository.
FIELDS = dict(
    pattern_length=fields.Field(
        int, low=1, default=20, help='The number P of steps of the pattern.'
    ),
    bits=fields.Field(
        int, low=1, high=12, default=7, help='The number of bits of a step.'
    ),
    pause=fields.Field(
        int, low=0, default=7,
        help='The number of steps between the pattern and the signal.',
    ),
    **generated.FIELDS,
)


def example(
    rng: np.random.Generator, length: int, bits: int, pause: int
) -> generated.Example:
  """Returns one example.

  Args:
    rng: Where the pattern comes from.
    length: The number `P` of steps of the pattern.
    bits: The number of bits of a step.
    pause: The number of steps between the pattern and the signal.

  Returns:
    Inputs `[T, bits + 1]` float32 with `T = 2 P + pause + 1`, and targets `[T]`
    int32, of which the last `P` count: bit i of a target is input i of the
    pattern.
  """
  pattern = rng.integers(2, size=(length, bits), dtype=np.int32)
  answer = length + pause + 1
  inputs = np.zeros((answer + length, bits + 1), np.float32)
  inputs[:length, :bits] = pattern
  inputs[answer - 1, bits] = 1
  targets = np.zeros(len(inputs), np.int32)
  targets[answer:] = pattern @ 2 ** np.arange(bits)
  return generated.Example(inputs, targets, np.arange(len(inputs)) >= answer)


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset` with endless training examples.

  Only the steps of the answer count. The only baseline is `chance_accuracy`.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: Seed, split and number decide an example.
  """
  usual, bits, pause = config.pattern_length, config.bits, config.pause
  return generated.dataset(
      config, shard, seed,
      lambda rng, length: example(rng, length or usual, bits, pause),
      lambda length: 2 * (length or usual) + pause + 1,
      name='copying',
      task='classification',
      in_features=bits + 1,
      num_classes=2**bits,
      baselines=lambda: {'chance_accuracy': 2.0**-bits},
      source=dict(generator='copying', version=VERSION),
  )


DEFINITION = definition.Definition(
    task='classification', fields=FIELDS, load=load
)
