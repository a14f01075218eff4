"""What every data set promises, and how grain keeps the promise.

A pipeline is a `grain.MapDataset` of example numbers. `Shard.take` groups the
numbers into this process's part of each batch, and a function of the data set
turns each group `[b]` into arrays `[b, ...]`. Element i is the batch of step
i + 1. Arithmetic alone finds it, so a run resumes at any step without reading
the earlier batches.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import grain
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import vocabulary as vocabularies

Batch = dict[str, np.ndarray]

# The number of examples of an endless data set: the largest count that floats
# hold exactly, because grain computes the length of a batched data set by a
# float division.
ENDLESS = 2**53

# The streams of random numbers of a generated data set. A split `test_<length>`
# has a stream of its own, see `stream`.
STREAMS = {'train': 0, 'validation': 1, 'test': 2}
# Tokens in an evaluation batch of long rows, unless a training batch has more.
LONG_BATCH_TOKENS = 2**17
# The batches among which rows of like lengths are brought together.
WINDOW = 64


@dataclasses.dataclass(frozen=True)
class Shard:
  """The rows of a global batch that belong to one process.

  Attributes:
    batch_size: Rows `B` of the global batch.
    process_index: The number `p` of this process. A tuple of numbers in
      ascending order if this process holds the rows of several.
    process_count: The number `P` of processes; process `p` holds the rows
      `[p * B/P, (p+1) * B/P)`.
  """

  batch_size: int
  process_index: int | tuple[int, ...] = 0
  process_count: int = 1

  def __post_init__(self):
    for name in ('batch_size', 'process_count'):
      value = getattr(self, name)
      if not fields.is_integer(value) or value < 1:
        raise errors.UserValueError(
            f'{name} must be a positive integer, got {value!r}.'
        )
    if not all(0 <= part < self.process_count for part in self.parts):
      raise errors.UserValueError(
          f'process_index must be in [0, {self.process_count}), got '
          f'{self.process_index!r}.'
      )
    if self.batch_size % self.process_count:
      raise errors.UserValueError(
          'batch_size is global and must be divisible by the number of '
          f'processes, got batch_size={self.batch_size} for '
          f'{self.process_count} processes.'
      )

  @property
  def parts(self) -> tuple[int, ...]:
    """The parts, of `P`, that this process holds."""
    index = self.process_index
    return index if isinstance(index, tuple) else (index,)

  @property
  def rows(self) -> int:
    """Rows of a batch on this process, `b`."""
    return self.batch_size // self.process_count * len(self.parts)

  def at_most(self, rows: int) -> 'Shard':
    """Returns the shard of batches of at most `rows` rows, for long rows.

    The new batch size divides the old one. Every process keeps at least one
    row, even if there are then more than `rows`.

    >>> Shard(64).at_most(20).batch_size, Shard(64, 1, 4).at_most(1).batch_size
    (16, 4)
    """
    share = self.batch_size // self.process_count
    fitting = [
        n for n in range(1, share + 1)
        if not share % n and n * self.process_count <= rows
    ]
    return dataclasses.replace(
        self, batch_size=max(fitting, default=1) * self.process_count
    )

  def take(self, numbers: grain.MapDataset) -> grain.MapDataset:
    """Groups numbers into int64 arrays `[b]`, the rows of this shard.

    Blocks of `B/P` numbers are dealt to the processes in turn. So a global
    batch holds the same `B` numbers in the same order for any `P`.
    """
    blocks = numbers.batch(self.batch_size // self.process_count)
    if len(self.parts) == 1:
      return blocks[self.parts[0] :: self.process_count]
    # Equally many blocks for each part; an endless data set can lose its last.
    end = len(blocks) // self.process_count * self.process_count
    held = [blocks[part : end : self.process_count] for part in self.parts]
    return grain.experimental.ZipMapDataset(held).map(np.concatenate)

  def train(self) -> grain.MapDataset:
    """Returns arrays `[b]` of the numbers 0, 1, 2, ... without end."""
    return self.take(grain.MapDataset.range(ENDLESS))

  def shuffled(self, count: int, seed: int) -> grain.MapDataset:
    """Returns arrays `[b]`: each epoch is a permutation of `range(count)`."""
    numbers = grain.MapDataset.range(count).seed(check_seed(seed)).shuffle()
    return self.take(numbers.repeat(ENDLESS // count + 1))

  def bucketed(self, buckets: np.ndarray, seed: int) -> grain.MapDataset:
    """Returns pairs: numbers `[b]` like those of `shuffled`, and a bucket.

    Batches hold numbers of one bucket, as far as possible. Each epoch is a
    permutation. A window of `WINDOW` batches, or of an epoch if that is less,
    is sorted by bucket and cut into batches anew; where the cut is inside of a
    bucket, the batch belongs to the larger one. The order of the batches in a
    window is random.

    Args:
      buckets: The bucket of each example, `[N]`.
      seed: Fixes the order.
    """
    seed, count = check_seed(seed), len(buckets)
    size = max(1, min(WINDOW, count // self.batch_size))  # Batches of a window.
    at_random = lambda number, n: generator(
        seed, 'train', number
    ).permutation(n)

    @functools.lru_cache(2)  # A window may reach into the next epoch.
    def epoch(number):
      return at_random(2 * number, count)

    @functools.lru_cache(2)
    def window(number):
      numbers = size * self.batch_size * number + np.arange(
          size * self.batch_size
      )
      first, last = numbers[0] // count, numbers[-1] // count
      rows = np.concatenate([epoch(i) for i in range(first, last + 1)])
      rows = rows[numbers - first * count]
      rows = rows[np.argsort(buckets[rows], kind='stable')]
      return rows.reshape(size, -1)[at_random(2 * number + 1, size)]

    def batch(index):
      whole = window(index // size)[index % size]
      held = whole.reshape(self.process_count, -1)[list(self.parts)].ravel()
      return held, int(buckets[whole].max())

    return grain.MapDataset.range(ENDLESS).map(batch)

  def evaluate(self, count: int) -> grain.MapDataset:
    """Returns arrays `[b]` that cover `range(count)` once, in order.

    All processes get equally many batches of one shape: the last batch is
    filled up with numbers from `count` upwards, which the data set masks.
    """
    padded = -(-count // self.batch_size) * self.batch_size
    return self.take(grain.MapDataset.range(padded))


def check_seed(seed: int) -> int:
  """Returns `seed` if both grain and numpy accept it."""
  if not fields.is_integer(seed) or not 0 <= seed < 2**32:
    raise errors.UserValueError(
        f'seed must be an integer in [0, 2**32), got {seed!r}.'
    )
  return int(seed)


def stream(split: str) -> int:
  """Returns the number of the stream of a split: no two splits share one.

  >>> stream('test'), stream('test_256') - 2**32
  (2, 256)
  """
  if split in STREAMS:
    return STREAMS[split]
  return 2**32 + int(split.removeprefix('test_'))


def generator(seed: int, split: str, number: int) -> np.random.Generator:
  """Returns the random number generator of one example."""
  # Philox is a function of (key, counter), and the counter counts upwards from
  # its first word. The example is in the last word, so no two examples share
  # random numbers.
  key = np.array([seed, stream(split)], np.uint64)
  counter = np.array([0, 0, 0, number], np.uint64)
  return np.random.Generator(np.random.Philox(key=key, counter=counter))


class Batches(Sequence):
  """A finite list of batches; each access makes the batch anew."""

  def __init__(self, batches: grain.MapDataset):
    self._batches = batches

  def __len__(self) -> int:
    return len(self._batches)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return Batches(self._batches[index])
    return self._batches[range(len(self))[index]]  # range checks the bounds.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """Training and evaluation batches of one data set, for one process.

  A batch is a dictionary of arrays with the rows first; `b` is the number of
  rows of this process:

  - `inputs`: tokens `[b, T]` of integers, vectors `[b, T, D]` or images
    `[b, T, H, W, C]`, float32 or the integers of one or two bytes that are
    stored: the model normalises these on the device. For matching, pairs of
    tokens `[b, T, 2]`.
  - `targets`: one for each step, `[b, T]` int32 or `[b, T, K]` float32; or one
    for each sequence, `[b]` int32 or `[b, K]` float32; or for forecasting the
    next `H` steps of `K` columns, `[b, H, K]` float32; or for video the next
    `H` images `[b, H, *image_shape]`, of the dtype of the inputs.
  - `mask`: which targets count, bool, `[b, T]` or `[b]`, or `[b, H, K]` where
    some numbers to forecast are missing. A training batch has it only where
    some targets do not count.
  - `future` `[b, H, F]` float32: what is known of the steps to forecast.
  - `input_mask` `[b, T]` bool (`[b, T, 2]` for pairs): which steps exist, where
    lengths are unequal. `T` may differ from batch to batch, see `buckets`.
  - `dt` `[b, T]` float32: the length of each step of time, where they differ.
  - `gaps` and `target_gaps` `[b, T]` float32, for events: the time between the
    event that is read, or predicted, and the one before. The last token says
    that there is no event; `true_log_likelihood` `[b, T]` is that of each
    target, in nats, where the process is known.
  - `probabilities` `[b, T, V]` float32: the true probabilities of each target,
    where they are known (`tasks.KnownSource`).
  - `reset` `[b, T]` bool: True on the first token of a stream (contiguous
    training text only) and of a document.

  Attributes:
    name: The name in the config, e.g. `'tiny_shakespeare'`.
    task: The name of its kind of task, see `definition.Definition`.
    batch_size: Rows of the global batch, over all processes.
    sequence_length: `T`, the length of the rows (selective copying adds the
      places of the answer to `config.sequence_length`).
    buckets: By length, in ascending order, functions that make a batch of that
      length, whose values mean nothing. Empty if all training batches have the
      length `sequence_length`, which is the last one otherwise.
    train: The training batches; element i is the batch of step i + 1.
    evaluation: The batches of each evaluation split, by name. At the end of a
      run, all splits whose names start with `test` are evaluated.
    eval_order: The number of each example in the order of the batches, for
      the evaluation splits where that is not 0, 1, 2 and so on.
    split_lengths: The length of the rows of those splits where it is not
      `sequence_length`, by name: `{'test_256': 256}`. They show what a model
      does with sequences longer than those that it was trained on.
    unit: What one step of time is, for people: `'characters'`, `'bytes'`,
      `'tokens'`, `'pixels'`, `'rows'`, `'frames'`, `'events'` or
      `'time steps'`.
    vocab_size: Number of token ids; 0 if the inputs are no tokens.
    in_features: Width `D` of the input vectors; 0 if the inputs are no vectors.
    image_shape: `(H, W, C)` of the input images; empty if there are none.
    input_offset: What a model subtracts from inputs that are integers, and
    input_scale: what it divides the difference by, to normalise vectors or
      images: one number, or one for each channel. Empty means 0, and 1 (255 for
      uint8 images).
    sequences: How many sequences an example has: 2 for pairs.
    irregular: Whether the batches have `dt`. The layers of a model must take
      it, see `tasks.Task.bind`.
    num_classes: Number of classes of a classification, else 0.
    class_names: Their names for people; empty if they have none.
    out_features: Number `K` of target values of a regression, or of columns to
      forecast, else 0.
    horizon: Number `H` of steps to forecast, or of images, else 0. The first
      `K` inputs are the past of the `K` columns to forecast.
    future_features: Number `F` of inputs that are known for these steps, too.
    gap_mean: The mean of the logarithms of the gaps between events, and
    gap_deviation: their standard deviation.
    target_names: The names of the columns to forecast.
    target_offset: The mean that was subtracted from each of these columns, and
    target_scale: the deviation that the difference was divided by.
    per_step: Whether there is a target for each step, not one for a sequence.
    forecast: Whether the targets of steps are inputs of later steps, and not
      labels. Then the model must be causal, see `tasks.Task.bind`.
    contiguous: Whether training rows go on where the same row of the step
      before stopped.
    vocabulary: How text becomes tokens, or `None` where there is no text.
    bytes_per_token: How many bytes of UTF-8 a target of the test split stands
      for, on average; 0 where there is no text.
    baselines: A function without arguments that measures what simple
      predictors reach, a dictionary of floats by name (see each data set).
    source: What distinguishes this data from any other, for JSON: for a text
      the lengths of its splits and its digest, for a generator its name and
      version.
    fixture: Whether the data was generated to try out programs, see
      `Definition.write_fixture`.
    config: The fields of `config.data` that it was loaded with, which a run
      records; empty if it was made of arrays.
  """

  name: str
  task: str
  batch_size: int
  sequence_length: int
  train: grain.MapDataset = dataclasses.field(repr=False)
  evaluation: Mapping[str, grain.MapDataset] = dataclasses.field(repr=False)
  buckets: Mapping[int, Callable[[], Batch]] = dataclasses.field(
      default_factory=dict, repr=False
  )
  eval_order: Mapping[str, np.ndarray] = dataclasses.field(
      default_factory=dict, repr=False
  )
  split_lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
  unit: str = 'time steps'
  vocab_size: int = 0
  in_features: int = 0
  image_shape: tuple[int, ...] = ()
  input_offset: tuple[float, ...] = ()
  input_scale: tuple[float, ...] = ()
  sequences: int = 1
  irregular: bool = False
  num_classes: int = 0
  class_names: tuple[str, ...] = ()
  out_features: int = 0
  horizon: int = 0
  future_features: int = 0
  gap_mean: float = 0.0
  gap_deviation: float = 1.0
  target_names: tuple[str, ...] = ()
  target_offset: tuple[float, ...] = ()
  target_scale: tuple[float, ...] = ()
  per_step: bool = False
  forecast: bool = False
  contiguous: bool = False
  vocabulary: vocabularies.Vocabulary | None = None
  bytes_per_token: float = 0.0
  baselines: Callable[[], dict[str, float]] = dataclasses.field(
      default=dict, repr=False
  )
  source: Mapping[str, Any] = dataclasses.field(
      default_factory=dict, repr=False
  )
  fixture: bool = False
  config: Mapping[str, Any] = dataclasses.field(
      default_factory=dict, repr=False
  )

  @property
  def eval_splits(self) -> tuple[str, ...]:
    """Names that `eval_batches` takes."""
    return tuple(self.evaluation)

  def train_batch(self, step: int) -> Batch:
    """Returns the batch of `step` (from 1), a pure function of (seed, step)."""
    batch = self.train[_check_step(step) - 1]
    assert batch is not None  # No filter leaves out a batch.
    return batch

  def each_shape(self) -> list[Batch]:
    """Returns one training batch of each shape, the longest last."""
    return [make() for make in self.buckets.values()] or [self.train_batch(1)]

  def train_iterator(self, start_step: int = 1) -> grain.DatasetIterator:
    """Returns the endless iterator over the batches from `start_step` on.

    It makes each batch on request: the training loop asks for the next one
    while the device computes a step. `close()` ends the iterator.
    """
    batches = self.train[_check_step(start_step) - 1 :]
    # No threads: the work is small and holds the interpreter lock, so a thread
    # would make the training loop wait for the lock.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(batches.to_iter_dataset(options))

  def eval_batches(self, split: str) -> Batches:
    """Returns the batches of a split, every target of it once.

    All batches have a `mask`, and all processes get equally many. They have
    a shape of training batches, except those of `split_lengths`: their rows
    have another length, and a batch may have fewer of them.

    Raises:
      UserValueError: If there is no such split.
    """
    if split not in self.evaluation:
      raise errors.UserValueError(
          f'{self.name} has no evaluation split {split!r}; it has '
          f'{", ".join(self.eval_splits)}.'
          + errors.suggest(split, self.eval_splits)
      )
    return Batches(self.evaluation[split])


def _check_step(step: Any) -> int:
  if not fields.is_integer(step) or step < 1:
    raise ValueError(f'step must be an integer of at least 1, got {step!r}.')
  return int(step)
