"""MAD: six small tasks that tell how well an architecture scales.

"Mechanistic Design and Scaling of Hybrid Architectures" (Poli et al. 2024,
https://arxiv.org/abs/2403.17844) makes one score of six tasks. The rules and
sizes are those of https://github.com/athms/mad-lab, `mad/data/instances.py` and
`configs/tasks`. `L` is `sequence_length`, `V` is `vocab_size`; ids start at 0.

`in_context_recall`: L/2 pairs of a key (the lower half of the ids) and a value
(the upper half). A key has the same value in the whole sequence, and another
one in the next sequence. A value counts if its key came before. The last pair
repeats a key. `noisy_in_context_recall`: the last 16 ids are noise, and a pair
is two of them with probability `noise_fraction`.

`fuzzy_in_context_recall`: a key and a value have one to three different ids
each, and all ids of a value count. In evaluation all keys have three. The last
id is padding, on the left. As in the suite, a few sequences in a hundred have a
last key that did not come before.

`selective_copying`: `num_tokens` ids among blanks (V - 2), the mark V - 1, then
as many blanks, where the ids are to be repeated. A blank falls before each id
with the same probability, so the last id stands before the mark.

`memorization`: keys, and after each the mark V - 1, where the value of the key
is to be said. All sequences of a run have the same values.

`compression`: L - 1 random ids and the mark V - 1. The model turns the sequence
into one vector, that of the last step, and a small MLP has to give all L ids
back from it. This is the kind of task `autoencoding`, the others are of the
kind `language_modelling`.

In recall, training asks for every next token and evaluation for the values that
count. In the other tasks both ask for the same. Training examples are few, and
come again in each epoch. The suite has 1280 test examples and no validation.
Its accuracy is the mean over ids of the share of right answers; here it is the
share of right answers.
"""

import functools
from typing import Any

import grain
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline

# Raise it with every change of the examples that a seed gives.
VERSION = 1
# The suite starts each task at these sizes: L, V and the training examples. It
# then changes one of them, see `experiments/configs/synthetic/mad.py`.
SIZES = dict(
    in_context_recall=(128, 16, 12_800),
    noisy_in_context_recall=(128, 32, 12_800),
    fuzzy_in_context_recall=(128, 16, 12_800),
    selective_copying=(256, 16, 12_800),
    memorization=(32, 256, 256),
    compression=(32, 16, 12_800),
)
RECALL = tuple(task for task in SIZES if task.endswith('recall'))
NOISE_IDS = 16
WORD = 3  # The longest key and the longest value of fuzzy recall.
_AS_SUITE = ' 0 means the size with which the suite starts the task.'
FIELDS = dict(
    task=fields.Field(
        str, choices=tuple(SIZES), default='in_context_recall',
        help='The task of the suite.',
    ),
    sequence_length=fields.Field(
        int, low=0, default=0, help='The length L.' + _AS_SUITE
    ),
    vocab_size=fields.Field(
        int, low=0, default=0, help='The number V of token ids.' + _AS_SUITE
    ),
    train_examples=fields.Field(
        int, low=0, default=0,
        help='The number of training examples.' + _AS_SUITE,
    ),
    noise_fraction=fields.Field(
        float, low=0, high=1, below_high=True, default=0.2,
        help='The probability that a pair is noise (noisy recall).',
    ),
    num_tokens=fields.Field(
        int, low=1, default=16,
        help='The number of ids to copy (selective copying).',
    ),
    eval_examples=fields.Field(
        int, low=1, default=1280,
        help='The number of examples in each of validation and test.',
    ),
)


def recall(
    rng: np.random.Generator, length: int, vocab_size: int,
    noise_ids: int = 0, noise_fraction: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens of (noisy) recall and which of them count, `[L]`."""
  ids, pairs = vocab_size - noise_ids, length // 2
  value_of = rng.integers(ids // 2, ids, ids // 2)
  keys = rng.integers(ids // 2, size=pairs)
  is_noise = rng.random(pairs) < noise_fraction
  is_noise[[rng.integers(pairs - 1), -1]] = False  # One pair before the last.
  shown = np.flatnonzero(~is_noise)
  keys[-1] = rng.choice(np.unique(keys[shown[:-1]]))
  _, first = np.unique(keys[shown], return_index=True)
  counts = np.zeros((pairs, 2), bool)
  counts[np.delete(shown, first), 1] = True
  tokens = np.stack([keys, value_of[keys]], axis=1)
  noise = rng.integers(ids, vocab_size, (pairs, 2)) if noise_ids else tokens
  return np.where(is_noise[:, None], noise, tokens).ravel(), counts.ravel()


def fuzzy_recall(
    rng: np.random.Generator, length: int, vocab_size: int, training: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens of fuzzy recall and which of them count, `[L + 1]`."""
  pad = vocab_size - 1
  half = pad // 2
  size = lambda: rng.integers(1, WORD + 1)
  word = lambda low, high, size: tuple(low + rng.permutation(high - low)[:size])
  new_key = lambda: word(0, half, size() if training else WORD)
  new_value = lambda: word(half, pad, size())
  last_key, last_value = new_key(), new_value()
  last_size = len(last_key) + len(last_value)
  place = rng.integers(length - 2 * last_size)
  tokens, counts, value_of = [], [], {}

  def append(key, value):
    tokens.extend(key + value)
    counts.extend([False] * len(key) + [key in value_of] * len(value))
    value_of[key] = value

  while len(tokens) < length - last_size - 2 * WORD:
    if len(tokens) >= place and last_key not in value_of:
      append(last_key, last_value)
      continue
    key = new_key()
    known = last_value if key == last_key else value_of.get(key)
    append(key, known or new_value())
  append(last_key, last_value)
  counts[-len(last_value) :] = [True] * len(last_value)
  missing = length + 1 - len(tokens)
  return (
      np.array([pad] * missing + tokens),
      np.array([False] * missing + counts),
  )


def selective_copying(
    rng: np.random.Generator, length: int, vocab_size: int, num_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns inputs, targets and which targets count, `[L]`."""
  mark, blank = vocab_size - 1, vocab_size - 2
  tokens = rng.integers(blank, size=num_tokens)
  blanks = rng.integers(num_tokens, size=length - 2 * num_tokens - 1)
  before = np.cumsum(np.bincount(blanks, minlength=num_tokens))
  inputs = np.full(length, blank)
  inputs[np.arange(num_tokens) + before] = tokens
  inputs[-num_tokens - 1] = mark
  targets, counts = np.zeros(length, int), np.zeros(length, bool)
  targets[-num_tokens:], counts[-num_tokens:] = tokens, True
  return inputs, targets, counts


def facts(seed: int, vocab_size: int) -> np.ndarray:
  """Returns the value of each key of memorization, `[(V - 1) // 2]`."""
  # No example has this number.
  rng = pipeline.generator(seed, 'train', pipeline.ENDLESS)
  keys = (vocab_size - 1) // 2
  return keys + rng.permutation(vocab_size - 1 - keys)[:keys]


def memorization(
    rng: np.random.Generator, length: int, value_of: np.ndarray, mark: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns inputs, targets and which targets count, `[L]`."""
  keys = rng.integers(len(value_of), size=length // 2)
  zeros = np.zeros_like(keys)
  pairs = lambda a, b: np.stack([a, b], axis=1).ravel()
  return (
      pairs(keys, zeros + mark),
      pairs(zeros, value_of[keys]),
      pairs(zeros, zeros + 1).astype(bool),
  )


def compression(
    rng: np.random.Generator, length: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns inputs, the same as targets, and that all count, `[L]`."""
  tokens = rng.integers(vocab_size - 1, size=length)
  tokens[-1] = vocab_size - 1
  return tokens, tokens, np.ones(length, bool)


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset`.

  The rows are one token shorter than `L` in (noisy) recall, where they end with
  the last key. The baseline `chance_accuracy` is that of a guess among the ids
  that a target can have.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: The seed and the number of an example decide the example.

  Raises:
    UserValueError: If the sizes do not fit together.
  """
  task = config.task
  length, vocab_size, train_examples = (
      getattr(config, name) or size for name, size in zip(
          ('sequence_length', 'vocab_size', 'train_examples'), SIZES[task]
      )
  )
  _check(task, length, vocab_size, config.num_tokens)
  value_of = facts(seed, vocab_size)
  noisy = task == 'noisy_in_context_recall'
  noise = (NOISE_IDS, config.noise_fraction) if noisy else ()

  def example(split, number):
    rng = pipeline.generator(seed, split, number)
    if task == 'selective_copying':
      return selective_copying(rng, length, vocab_size, config.num_tokens)
    if task == 'memorization':
      return memorization(rng, length, value_of, vocab_size - 1)
    if task == 'compression':
      return compression(rng, length, vocab_size)
    if task == 'fuzzy_in_context_recall':
      tokens, counts = fuzzy_recall(rng, length, vocab_size, split == 'train')
    else:
      tokens, counts = recall(rng, length, vocab_size, *noise)
    counts = counts[1:] | (split == 'train')
    return tokens[:-1], tokens[1:], counts

  example = functools.cache(example)  # Each epoch asks for the same examples.
  all_count = task in (*RECALL, 'compression')

  def batches(numbers: grain.MapDataset, split: str, count: int):

    def batch(numbers):
      rows = zip(*(example(split, int(number)) for number in numbers))
      inputs, targets, counts = (np.stack(part) for part in rows)
      arrays = dict(
          inputs=inputs.astype(np.int32), targets=targets.astype(np.int32)
      )
      if split != 'train' or not all_count:
        arrays['mask'] = counts & (numbers[:, None] < count)
      return arrays

    return numbers.map(batch)

  count = config.eval_examples
  train = shard.shuffled(train_examples, seed)
  return pipeline.Dataset(
      name='mad',
      task='autoencoding' if task == 'compression' else DEFINITION.task,
      unit='tokens',
      batch_size=shard.batch_size,
      sequence_length=length - (task in RECALL[:2]),
      vocab_size=vocab_size,
      per_step=True,
      forecast=task in RECALL,
      train=batches(train, 'train', train_examples),
      evaluation={
          split: batches(shard.evaluate(count), split, count)
          for split in ('validation', 'test')
      },
      baselines=lambda: {'chance_accuracy': chance(task, length, vocab_size)},
      source=dict(generator='mad', version=VERSION),
  )


def chance(task: str, length: int, vocab_size: int) -> float:
  """Returns the accuracy of a guess among the ids that a target can have."""
  if task == 'compression':  # The mark is always the last token.
    return ((length - 1) / (vocab_size - 1) + 1) / length
  if task == 'selective_copying':
    return 1 / (vocab_size - 2)
  others = dict(in_context_recall=0, noisy_in_context_recall=NOISE_IDS)
  ids = vocab_size - others.get(task, 1)
  return 1 / (ids - ids // 2)


def _check(task, length, vocab_size, num_tokens):
  """Raises `UserValueError` if the sizes do not fit together."""
  shortest = dict(
      fuzzy_in_context_recall=4 * WORD + 1,
      selective_copying=2 * num_tokens + 2, compression=2,
  ).get(task, 4)
  if length < shortest:
    tokens = f' with data.num_tokens={num_tokens}'
    raise errors.UserValueError(
        f'data.sequence_length must be at least {shortest} for {task}'
        f'{tokens if task == "selective_copying" else ""}, got {length}.'
    )
  even = task in (*RECALL[:2], 'memorization')
  if even and length % 2:
    raise errors.UserValueError(
        f'data.sequence_length must be even for {task}, which is made of '
        f'pairs, got {length}.'
    )
  smallest = dict(
      in_context_recall=2, noisy_in_context_recall=NOISE_IDS + 2,
      fuzzy_in_context_recall=2 * WORD + 1, compression=2,
  ).get(task, 3)
  if vocab_size < smallest:
    raise errors.UserValueError(
        f'data.vocab_size must be at least {smallest} for {task}, got '
        f'{vocab_size}.'
    )


DEFINITION = definition.Definition(
    # That of all tasks but compression.
    task='language_modelling', fields=FIELDS, load=load
)
