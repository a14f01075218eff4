"""What data sets of events share: from sequences to batches and baselines.

A sequence of `n` events is `n + 1` targets at most: every event, and the time
without one from the last event to the end of the window. This last target has
the type `K`, where the types of events are `0` to `K - 1`.
"""

from collections.abc import Mapping, Sequence
import hashlib
from typing import Any, NamedTuple

import numpy as np
from rnnzoo import errors
from rnnzoo.data import pipeline


class Events(NamedTuple):
  """One sequence of `n` events in a window that starts at time 0.

  Attributes:
    times: Float64 `[n]`, not descending.
    types: Integers `[n]`, from 0.
    end: The time when the window ends. `None` if it ends with the last event.
    first: The type of an event at time 0, which is read but not predicted;
      `None` if the window starts without one.
    true: What the true process says of each target, see `Truth`; `None` if it
      is not known.
  """

  times: np.ndarray
  types: np.ndarray
  end: float | None = None
  first: int | None = None
  true: 'Truth | None' = None

  @property
  def targets(self) -> int:
    """How many targets it has."""
    return len(self.times) + (self.end is not None)


class Truth(NamedTuple):
  """What the process that made some targets says of them.

  Attributes:
    log_likelihood: In nats, float64.
    right: Whether the type was the most probable one at that time.
  """

  log_likelihood: np.ndarray
  right: np.ndarray


class Arrays(NamedTuple):
  """The sequences of a split, padded to `L` targets.

  Attributes:
    types: `[N, L + 1]` int32: what is read first, then the targets.
    gaps: `[N, L + 1]` float64: the time since the one before.
    targets: How many targets each sequence has, `[N]`.
    log_likelihood: `[N, L]`, 0 where the true process is not known.
    right: `[N, L]` bool.
  """

  types: np.ndarray
  gaps: np.ndarray
  targets: np.ndarray
  log_likelihood: np.ndarray
  right: np.ndarray


def cut(events: Events, length: int) -> list[Events]:
  """Cuts a sequence into parts of at most `length` targets.

  Each part but the first starts with the last event of the part before.

  >>> whole = Events(np.array([1.0, 2.0, 4.0]), np.array([0, 1, 0]), end=5.0)
  >>> [(part.times.tolist(), part.end) for part in cut(whole, 2)]
  [([1.0, 2.0], None), ([2.0], 3.0)]

  Args:
    events: The sequence.
    length: The number of targets.
  """
  parts, count = [], len(events.times)
  for begin in range(0, events.targets, length):
    stop = min(begin + length, count)
    start = events.times[begin - 1] if begin else 0.0
    ends = stop == count and events.targets - begin <= length
    end = events.end if ends else None
    parts.append(Events(
        events.times[begin:stop] - start, events.types[begin:stop],
        None if end is None else float(end - start),
        int(events.types[begin - 1]) if begin else events.first,
    ))
  return parts


def padded(split: Sequence[Events], kinds: int, length: int) -> Arrays:
  """Returns sequences as arrays.

  Args:
    split: The sequences, of at most `length` targets.
    kinds: `K`, the number of types.
    length: `L`.
  """
  shape = len(split), length + 1
  types, gaps = np.full(shape, kinds, np.int32), np.zeros(shape)
  log_likelihood = np.zeros((len(split), length))
  right = np.zeros((len(split), length), bool)
  for row, events in enumerate(split):
    count = len(events.times)
    if events.first is not None:
      types[row, 0] = events.first
    types[row, 1 : count + 1] = events.types
    gaps[row, 1 : count + 1] = np.diff(events.times, prepend=0.0)
    if events.end is not None:
      last = events.times[-1] if count else 0.0
      gaps[row, count + 1] = events.end - last
    if events.true is not None:
      log_likelihood[row, : events.targets] = events.true.log_likelihood
      right[row, : events.targets] = events.true.right
  targets = np.array([events.targets for events in split], np.int64)
  return Arrays(types, gaps, targets, log_likelihood, right)


def dataset(
    splits: Mapping[str, Sequence[Events]],
    shard: pipeline.Shard,
    seed: int,
    *,
    kinds: int,
    length: int,
    source: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> pipeline.Dataset:
  """Returns sequences of events as a `Dataset`.

  Training takes every sequence once an epoch, in a shuffled order of its own.
  The baselines are in nats per event: `poisson_loss`, of a Poisson process
  with the rates of the train part; and where it is known `true_loss`, of the
  process that made the test part, with `true_accuracy`, how often the type of
  an event was the most probable one at its time.

  Args:
    splits: `train`, `validation` and `test`.
    shard: The rows of this process.
    seed: Fixes the order of the training sequences.
    kinds: `K`, the number of types.
    length: The targets of a row.
    source: What distinguishes the data from any other; if `None`, it is its
      digest.
    **attributes: The other attributes of the `Dataset`.

  Raises:
    UserValueError: If a split has no event to predict.
  """
  arrays = {
      name: padded(split, kinds, length) for name, split in splits.items()
  }
  for name, split in arrays.items():
    if not _is_event(split, kinds).any():
      raise errors.UserValueError(
          f'The {name} part has {len(split.types)} sequences and no event to '
          'predict. There must be more sequences, or data.parts must give it '
          'a larger share.'
      )
  knows = any(events.true is not None for events in splits['train'])
  train = arrays['train']
  gaps = np.log(train.gaps[:, 1:][_is_event(train, kinds)])
  if source is None:
    source = _digest(arrays)

  def batch(name, numbers):
    split, count = arrays[name], len(arrays[name].types)
    rows = np.minimum(numbers, count - 1)
    types, gaps = split.types[rows], split.gaps[rows].astype(np.float32)
    exists = np.arange(length) < split.targets[rows, None]
    found = dict(
        inputs=types[:, :-1], gaps=gaps[:, :-1],
        targets=types[:, 1:], target_gaps=gaps[:, 1:],
        mask=exists & (numbers < count)[:, None], input_mask=exists,
    )
    if knows:
      found['true_log_likelihood'] = (
          split.log_likelihood[rows].astype(np.float32)
      )
    return found

  return pipeline.Dataset(
      task='events',
      unit='events',
      batch_size=shard.batch_size,
      sequence_length=length,
      vocab_size=kinds + 1,
      per_step=True,
      forecast=True,
      gap_mean=float(gaps.mean()),
      # All gaps may be alike.
      gap_deviation=float(max(gaps.std(), 1e-3)),
      train=shard.shuffled(len(train.types), seed).map(
          lambda numbers: batch('train', numbers)
      ),
      evaluation={
          name: shard.evaluate(len(split.types)).map(
              lambda numbers, name=name: batch(name, numbers)
          )
          for name, split in arrays.items() if name != 'train'
      },
      baselines=lambda: baselines(train, arrays['test'], kinds, knows),
      source=source,
      **attributes,
  )


def baselines(
    train: Arrays, test: Arrays, kinds: int, knows: bool
) -> dict[str, float]:
  """Returns what simple processes reach on the test part, see `dataset`."""
  here = train.types[:, 1:][_is_event(train, kinds)]
  # One event more of each type: the test part may have one that is new.
  rates = (np.bincount(here, minlength=kinds) + 1) / train.gaps[:, 1:].sum()
  is_event = _is_event(test, kinds)
  total = np.log(rates)[test.types[:, 1:][is_event]].sum()
  total -= rates.sum() * test.gaps[:, 1:].sum()
  count = is_event.sum()
  found = dict(poisson_loss=float(-total / count))
  if knows:
    found['true_loss'] = float(-test.log_likelihood.sum() / count)
    if kinds > 1:
      found['true_accuracy'] = float(test.right[is_event].mean())
  return found


def _is_event(arrays, kinds):
  """Which targets are events, `[N, L]`."""
  return arrays.types[:, 1:] < kinds


def _digest(arrays):
  found = hashlib.sha256()
  for name, split in arrays.items():
    for array in (split.types, split.gaps, split.targets):
      found.update(f'{name} {array.shape}'.encode())
      found.update(np.ascontiguousarray(array).data)
  return dict(
      sequences={name: len(split.types) for name, split in arrays.items()},
      sha256=found.hexdigest(),
  )
