"""Questions about long texts, as bytes: only the bytes of the answer count."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo.data import pipeline
from rnnzoo.data import vocabulary as vocabularies
from rnnzoo.data.synthetic import generated


def example(text: bytes, answers: Sequence[slice]) -> generated.Example:
  """Returns a text whose targets are the bytes at `answers`.

  >>> made = example(b'2 and 3 is 5', [slice(11, 12)])
  >>> bytes(made.targets[made.counted].tolist())
  b'5'
  """
  whole = np.frombuffer(text, np.uint8).astype(np.int32)
  counted = np.zeros(len(whole), bool)
  for place in answers:
    counted[place] = True
  counted = counted[1:]
  return generated.Example(
      whole[:-1], np.where(counted, whole[1:], 0), counted
  )


def dataset(
    config: Any,
    shard: pipeline.Shard,
    seed: int,
    make: Callable[[np.random.Generator, int], generated.Example],
    shortest: int,
    **attributes: Any,
) -> pipeline.Dataset:
  """Returns a `Dataset` of texts, padded at their ends.

  Args:
    config: Has `sequence_length` and the fields in `generated.FIELDS`.
    shard: The rows of this process.
    seed: Seed, split and number decide an example.
    make: Draws an `example` with at most so many bytes, the answer included.
    shortest: The smallest number for which it can.
    **attributes: Of the `Dataset`.

  Raises:
    UserValueError: If a length is too small.
  """
  for name, lengths in dict(
      sequence_length=[config.sequence_length], test_lengths=config.test_lengths
  ).items():
    if min(lengths, default=shortest) < shortest:
      raise errors.UserValueError(
          f'data.{name} must be at least {shortest}, the bytes of a text with '
          f'a question, its answer and no filler, got {min(lengths)}.'
      )
  bound = lambda longer: longer or config.sequence_length
  return generated.dataset(
      config, shard, seed,
      lambda rng, longer: make(rng, bound(longer)),
      lambda longer: bound(longer) - 1,
      task='language_modelling',
      unit='bytes',
      vocab_size=256,
      vocabulary=vocabularies.Vocabulary('byte'),
      **attributes,
  )
