r"""A Hawkes process: events that make other events more likely for a while.

Hawkes (1971), https://doi.org/10.1093/biomet/58.1.83, with exponential kernels.
The rate of events of type `k` at time `t` is

.. math::
    \lambda_k(t) = \mu_k + \sum_{t_i < t} A_{k, k_i} B_{k, k_i}
        e^{-B_{k, k_i} (t - t_i)},

so an event of type `j` causes `A_kj` events of type `k` on average, at once or
later. It is simulated exactly, by thinning (Ogata 1981,
https://doi.org/10.1109/TIT.1981.1056305), for all sequences at once. A window
starts without a past and ends after `data.duration`, or with its last event if
there are `data.sequence_length` of them before.

Each batch has the exact log-likelihood of each target under this process, with
which the kind of task `events` compares that of the model.
"""

from typing import Any, NamedTuple

import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data.events import sequences

# Raise it with every change of the examples that a seed gives.
VERSION = 1
FIELDS = dict(
    baseline=fields.Field(
        tuple, items=float, low=0, default=(0.3, 0.15, 0.05),
        help='The rate of events without a cause, of each type.',
    ),
    branching=fields.Field(
        tuple, items=float, low=0,
        default=(0.4, 0.0, 0.3, 0.3, 0.2, 0.0, 0.0, 0.5, 0.2),
        help='How many events of one type are caused by one of another, row by '
        'row: a row is what is caused, a column what causes it.',
    ),
    decay=fields.Field(
        tuple, items=float, low=0, above_low=True,
        default=(4.0, 1.0, 0.5, 1.0, 2.0, 1.0, 1.0, 0.4, 3.0),
        help='How fast each cause is forgotten, in the same order: one over '
        'its mean delay.',
    ),
    duration=fields.Field(
        float, low=0, above_low=True, default=30.0,
        help='The length of the window.',
    ),
    sequence_length=fields.Field(
        int, low=1, default=64,
        help='The largest number of events of a sequence; a window ends with '
        'this one at the latest.',
    ),
    train_examples=fields.Field(
        int, low=1, default=2048, help='The number of training sequences.'
    ),
    eval_examples=fields.Field(
        int, low=1, default=256,
        help='The number of sequences in each of validation and test.',
    ),
)


class Process(NamedTuple):
  """The parameters of a Hawkes process with `K` types, float64.

  Attributes:
    baseline: `[K]`, mu.
    branching: `[K, K]`, A.
    decay: `[K, K]`, B.
  """

  baseline: np.ndarray
  branching: np.ndarray
  decay: np.ndarray


def make(config: Any) -> Process:
  """Returns the process of a config.

  Raises:
    UserValueError: If the sizes do not agree, there are no events, or each
      event causes one event or more.
  """
  kinds = len(config.baseline)
  if not sum(config.baseline) > 0:
    raise errors.UserValueError(
        'data.baseline must have a rate above 0, got '
        f'{fields.shown(config.baseline)}.'
    )
  found = [np.array(config.baseline, np.float64)]
  for name in ('branching', 'decay'):
    values = getattr(config, name)
    if len(values) != kinds**2:
      raise errors.UserValueError(
          f'data.{name} must have {kinds} x {kinds} numbers, one for each pair '
          f'of the types of data.baseline, got {len(values)}.'
      )
    found.append(np.array(values, np.float64).reshape(kinds, kinds))
  radius = np.abs(np.linalg.eigvals(found[1])).max()
  if radius >= 1:
    raise errors.UserValueError(
        'data.branching must have a spectral radius below 1, or events cause '
        f'more and more events; got {radius:.4g}.'
    )
  return Process(*found)


def simulate(
    process: Process,
    rng: np.random.Generator,
    count: int,
    duration: float,
    length: int,
) -> list[sequences.Events]:
  """Draws `count` sequences, without what the process says of them.

  Args:
    process: The process.
    rng: The source of randomness.
    count: The number of sequences.
    duration: The end of the window.
    length: A window ends with this event, if there is one.
  """
  kinds = len(process.baseline)
  jumps = process.branching * process.decay
  rate = np.zeros((count, kinds, kinds))  # Of each type, by each cause.
  now, size = np.zeros(count), np.zeros(count, np.int64)
  times, types = np.zeros((count, length)), np.zeros((count, length), np.int64)
  rows = np.arange(count)  # Those that go on.
  while rows.size:
    # The rate falls until the next event, so what it is now bounds it.
    bound = process.baseline.sum() + rate[rows].sum((1, 2))
    wait = rng.exponential(size=rows.size) / bound
    chance = rng.random(rows.size) * bound
    now[rows] += wait
    rate[rows] *= np.exp(-process.decay * wait[:, None, None])
    sums = np.cumsum(process.baseline + rate[rows].sum(2), axis=1)
    happens = (chance < sums[:, -1]) & (now[rows] <= duration)
    hit = rows[happens]
    kind = (chance[happens, None] >= sums[happens]).sum(1)
    times[hit, size[hit]], types[hit, size[hit]] = now[hit], kind
    rate[hit, :, kind] += jumps[:, kind].T
    size[hit] += 1
    rows = rows[(now[rows] <= duration) & (size[rows] < length)]
  return [
      sequences.Events(
          times[i, : size[i]], types[i, : size[i]],
          None if size[i] == length else float(duration),
      )
      for i in range(count)
  ]


def truth(
    process: Process, types: np.ndarray, gaps: np.ndarray
) -> sequences.Truth:
  """Returns what the process says of all targets, in one pass over each row.

  The sums over earlier events are kept in `K x K` numbers, which decay from
  event to event, so that `n` events cost `n` steps.

  >>> poisson = Process(np.ones(1), np.zeros((1, 1)), np.ones((1, 1)))
  >>> truth(poisson, np.array([[0, 1]]), np.array([[2.0, 3.0]]))[0]
  array([[-2., -3.]])

  Args:
    process: The process, which starts without a past.
    types: The types of targets `[N, L]`, `K` for no event.
    gaps: The time before each of them `[N, L]`, float64.
  """
  kinds = len(process.baseline)
  jumps = np.pad(process.branching * process.decay, ((0, 0), (0, 1)))
  rate = np.zeros((len(types), kinds, kinds + 1))
  decay = np.pad(process.decay, ((0, 0), (0, 1)), constant_values=1.0)
  found = np.zeros(types.shape)
  right = np.zeros(types.shape, bool)
  rows = np.arange(len(types))
  for step in range(types.shape[1]):
    kind, gap = types[:, step], gaps[:, step, None, None]
    left = np.exp(-decay * gap)
    expected = (rate * (1 - left) / decay).sum((1, 2))
    expected += process.baseline.sum() * gaps[:, step]
    rate = rate * left
    each = process.baseline + rate.sum(2)
    happens = kind < kinds
    chosen = np.where(happens, each[rows, np.minimum(kind, kinds - 1)], 1)
    found[:, step] = np.log(chosen) - expected
    right[:, step] = happens & (each.argmax(1) == kind)
    rate[rows, :, kind] += jumps[:, kind].T
  return sequences.Truth(found, right)


def split(
    process: Process, rng: np.random.Generator, count: int, config: Any
) -> list[sequences.Events]:
  """Draws `count` sequences, with what the process says of them."""
  drawn = simulate(
      process, rng, count, config.duration, config.sequence_length
  )
  arrays = sequences.padded(
      drawn, len(process.baseline), config.sequence_length
  )
  found = truth(process, arrays.types[:, 1:], arrays.gaps[:, 1:])
  return [
      events._replace(true=sequences.Truth(*(
          u[row, : events.targets] for u in found
      )))
      for row, events in enumerate(drawn)
  ]


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the process as a `Dataset`, see `sequences.dataset`.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: Decides the sequences of all splits, and the order of training.

  Raises:
    UserValueError: See `make`.
  """
  process = make(config)
  counts = dict(
      train=config.train_examples, validation=config.eval_examples,
      test=config.eval_examples,
  )
  return sequences.dataset(
      {
          name: split(
              process, pipeline.generator(seed, name, 0), count, config
          )
          for name, count in counts.items()
      },
      shard, seed,
      kinds=len(process.baseline),
      length=config.sequence_length,
      name='hawkes',
      source=dict(generator='hawkes', version=VERSION),
  )


DEFINITION = definition.Definition(task='events', fields=FIELDS, load=load)
