"""A finite set of examples, each an input sequence with its target.

`from_arrays`, the file `npz_file` and the sets of images end here: they give
arrays of examples for each split, and `dataset` makes batches of them.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
from rnnzoo import fields
from rnnzoo.data import conversion
from rnnzoo.data import pipeline

# The split is the same for all seeds of a run, so that runs can be compared.
_SPLIT_SEED = 0
_CHUNK = 1000

# The field of a data set whose rows have unequal lengths.
BUCKETS = fields.Field(
    int, low=1, high=64, default=1,
    help='The most lengths that batches may have. Rows of like lengths come '
    'together, and a batch is as long as they need. Each length is a compiled '
    'program. With 1, all batches are as long as the longest row.',
)


@dataclasses.dataclass(frozen=True)
class Examples:
  """The examples of one split, `N` of them.

  Attributes:
    inputs: Tokens `[N, T]`, pairs of tokens `[N, T, 2]`, vectors `[N, T, D]`,
      images `[N, T, H, W, C]`, or what `dataset` turns into these. Integers of
      one or two bytes go to the device as they are. They need not lie in
      memory: anything that has a length and takes indices `[n]` will do.
    targets: `[N]` int, `[N, K]` float; or for each step `[N, T]` int,
      `[N, T, K]` float.
    lengths: How many steps of each example exist, `[N]`, or `[N, 2]` of pairs;
      `None` if all do.
    dt: How long each step lasts, `[N, T]` float32; `None` if all last equally
      long.
  """

  inputs: np.ndarray
  targets: np.ndarray
  lengths: np.ndarray | None = None
  dt: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.inputs)

  def take(self, index) -> 'Examples':
    """Returns the examples at `index`."""
    of = lambda array: None if array is None else array[index]
    return Examples(
        self.inputs[index], self.targets[index], of(self.lengths), of(self.dt)
    )


def split(examples: Examples, shares: Mapping[str, float]):
  """Cuts examples into splits at random, always in the same way.

  With one label for each example, every split has the same share of each class,
  give or take one example or two.

  >>> labels = np.array([0, 1] * 50)
  >>> parts = split(Examples(np.arange(100), labels), dict(train=0.8, test=0.2))
  >>> {name: np.bincount(part.targets) for name, part in parts.items()}
  {'train': array([40, 40]), 'test': array([10, 10])}

  Args:
    examples: The examples.
    shares: The share of each split; they add up to 1.

  Returns:
    A dictionary of `Examples`; each split keeps the order of `examples`.
  """
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(examples))
  targets = examples.targets
  if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
    order = order[np.argsort(targets[order], kind='stable')]
  # Each example goes to the split that lacks most: any run of neighbours in
  # `order`, such as a class, is shared out evenly.
  share = np.array(list(shares.values()))
  counts, parts = np.zeros(len(share)), [[] for _ in share]
  for number, index in enumerate(order, 1):
    part = int(np.argmax(share * number - counts))
    counts[part] += 1
    parts[part].append(index)
  return {
      name: examples.take(np.sort(np.array(part, np.int64)))
      for name, part in zip(shares, parts, strict=True)
  }


def dataset(
    splits: Mapping[str, Examples],
    shard: pipeline.Shard,
    seed: int,
    *,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    sequence_length: int,
    per_step: bool = False,
    buckets: int = 1,
    source: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> pipeline.Dataset:
  """Returns examples as a `Dataset`.

  Training takes every example once an epoch, in a shuffled order of its own.
  Evaluation takes every example once, in order or, with buckets, the short ones
  first; rows that fill up the last batch repeat the last example and do not
  count.

  Args:
    splits: `train` and the splits to evaluate. All have the same shapes.
    shard: The rows of this process.
    seed: Fixes the order of the training examples.
    transform: Turns the inputs of a batch into tokens `[b, T]`, pairs of tokens
      `[b, T, 2]`, vectors `[b, T, D]` or images `[b, T, H, W, C]`. If `None`,
      they are those.
    sequence_length: `T`.
    per_step: Whether there is a target for each step.
    buckets: The most lengths that batches may have, see `bucket_lengths`.
    source: What distinguishes the data from any other; if `None`, it is the
      `digest`, which reads all of it.
    **attributes: The other attributes of the `Dataset`.
  """
  lengths = {
      name: np.full(len(part), sequence_length)
      if part.lengths is None else part.lengths
      for name, part in splits.items()
  }
  ragged = any((u < sequence_length).any() for u in lengths.values())

  def batch(split, training, numbers, length):
    examples, count = splits[split], len(splits[split])
    rows = np.minimum(numbers, count - 1)
    inputs = examples.inputs[rows]
    inputs = transform(inputs) if transform else inputs
    if not conversion.is_small(inputs):
      inputs = _narrow(inputs)
    targets = _narrow(examples.targets[rows])
    arrays = dict(
        inputs=inputs[:, :length],
        targets=targets[:, :length] if per_step else targets,
    )
    if examples.dt is not None:
      arrays['dt'] = examples.dt[rows, :length]
    counted = numbers < count
    mask = None if training else counted
    if ragged:
      until = lengths[split][rows, None]
      steps = np.arange(length).reshape(-1, *(1,) * (until.ndim - 2))
      exists = steps < until
      arrays['input_mask'] = exists
      if per_step:
        mask = exists & counted[:, None]
    elif per_step and not training:
      mask = np.repeat(counted[:, None], length, axis=1)
    return arrays if mask is None else arrays | {'mask': mask}

  # A pair is as long as the longer of its two.
  longest = {
      name: u.reshape(len(u), -1).max(axis=1) for name, u in lengths.items()
  }
  sizes = bucket_lengths(longest['train'], sequence_length, buckets)
  found = {name: np.searchsorted(sizes, u) for name, u in longest.items()}
  order = {  # With one length it is that of the examples.
      name: np.argsort(u, kind='stable')
      for name, u in found.items() if name != 'train'
  }

  def eval_batch(split, numbers):
    # The longest row of the whole batch is its last, perhaps of another shard.
    count, end = len(order[split]), numbers[0] // shard.batch_size + 1
    last = order[split][min(end * shard.batch_size, count) - 1]
    rows = order[split][np.minimum(numbers, count - 1)]
    rows = np.where(numbers < count, rows, count)
    return batch(split, False, rows, sizes[found[split][last]])

  count, several = len(splits['train']), len(sizes) > 1
  if several:
    numbers = shard.bucketed(found['train'], seed)
  else:
    numbers = shard.shuffled(count, seed).map(lambda rows: (rows, 0))
  some = np.arange(shard.rows) % count
  return pipeline.Dataset(
      batch_size=shard.batch_size,
      sequence_length=sequence_length,
      per_step=per_step,
      train=numbers.map(
          lambda pair: batch('train', True, pair[0], sizes[pair[1]])
      ),
      evaluation={
          name: shard.evaluate(len(u)).map(functools.partial(eval_batch, name))
          for name, u in order.items()
      },
      buckets={
          int(size): functools.partial(batch, 'train', True, some, size)
          for size in sizes if several
      },
      eval_order=order if several else {},
      source=digest(splits) if source is None else source,
      **attributes,
  )


def bucket_lengths(
    lengths: np.ndarray, sequence_length: int, count: int
) -> np.ndarray:
  """Returns at most `count` lengths of batches, ascending.

  Equally many rows belong to each. All but the last, which is
  `sequence_length`, are multiples of a power of two, at most
  `sequence_length / 32`: so the devices of `mesh.sequence` can share them.

  >>> bucket_lengths(np.arange(500, 2001), 2000, 4)
  array([ 896, 1280, 1632, 2000])

  Args:
    lengths: Those of the rows, `[N]`.
    sequence_length: The longest that there may be.
    count: How many.
  """
  step = 2 ** max(0, int(sequence_length // 32).bit_length() - 1)
  shares = np.arange(1, count) / count
  ends = np.quantile(lengths, shares, method='inverted_cdf').astype(np.int64)
  ends = -(-ends // step) * step
  return np.unique(np.append(ends[ends < sequence_length], sequence_length))


def _narrow(values: np.ndarray) -> np.ndarray:
  """Returns integers as int32 and other numbers as float32."""
  whole = np.issubdtype(values.dtype, np.integer)
  return values.astype(np.int32 if whole else np.float32)


def digest(splits: Mapping[str, Examples]) -> dict[str, Any]:
  """Returns the sizes of the splits and the digest of their arrays."""
  found = hashlib.sha256()
  for name, examples in splits.items():
    for array in (
        examples.inputs, examples.targets, examples.lengths, examples.dt
    ):
      if array is not None:
        found.update(f'{name} {array.dtype.str} {array.shape}'.encode())
        found.update(np.ascontiguousarray(array).data)
  return dict(
      examples={name: len(examples) for name, examples in splits.items()},
      sha256=found.hexdigest(),
  )


def label_baselines(
    splits: Mapping[str, Examples],
    split: str = 'test',
    vectors: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, float]:
  """Returns what simple classifiers reach on `split`.

  `majority_accuracy`: always the most frequent class of the train split.

  `centroid_accuracy`, where `vectors` is given: the class whose mean is
  nearest.

  Args:
    splits: Examples with labels `[N]` or `[N, T]`.
    split: Where accuracy is measured.
    vectors: Turns inputs of examples into vectors `[n, F]`.
  """
  train, test = counted_targets(splits['train']), counted_targets(splits[split])
  frequent = np.bincount(train).argmax()
  found = {'majority_accuracy': float(np.mean(test == frequent))}
  if vectors:
    found['centroid_accuracy'] = _centroid_accuracy(
        splits['train'], splits[split], vectors
    )
  return found


def number_baselines(
    splits: Mapping[str, Examples], split: str = 'test'
) -> dict[str, float]:
  """Returns `mean_mse`: of always saying the mean of the train split."""
  train, test = counted_targets(splits['train']), counted_targets(splits[split])
  mean = train.mean(0, dtype=np.float64)
  return {'mean_mse': float(np.mean((test - mean) ** 2))}


def counted_targets(examples: Examples) -> np.ndarray:
  """Returns the targets of the steps that exist, or of all sequences."""
  targets, lengths = examples.targets, examples.lengths
  integers = np.issubdtype(targets.dtype, np.integer)
  if targets.ndim == (1 if integers else 2):
    return targets
  exists = np.full(targets.shape[:2], True)
  if lengths is not None:
    exists = np.arange(targets.shape[1]) < lengths[:, None]
  return targets[exists]


def _centroid_accuracy(train, test, vectors):
  def chunks(examples):
    for start in range(0, len(examples), _CHUNK):
      part = slice(start, start + _CHUNK)
      yield vectors(examples.inputs[part]), examples.targets[part]

  classes = np.unique(train.targets)
  sums = functools.reduce(np.add, (
      (labels == classes[:, None]).astype(np.float32) @ x
      for x, labels in chunks(train)
  ))
  means = sums / (train.targets == classes[:, None]).sum(1, keepdims=True)
  right = 0
  for x, labels in chunks(test):
    # The nearest mean, without the squares of `x`, which all classes share.
    distances = (means**2).sum(1) - 2 * x @ means.T
    right += int((classes[distances.argmin(1)] == labels).sum())
  return right / len(test)
