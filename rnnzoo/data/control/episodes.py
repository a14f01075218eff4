"""Windows of episodes, as the Decision Transformer is trained.

A window of `K` steps may start at any step of an episode; so episodes are drawn
in proportion to their length. What follows the end of the episode is masked.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import arrays
from rnnzoo.data import pipeline

# Fixes which episodes are in which part.
_SPLIT_SEED = 0
# Added to deviations, as in the Decision Transformer.
_SMALL = 1e-6

FIELDS = dict(
    sequence_length=fields.Field(
        int, default=20, low=1, help='K, the steps of a window.',
    ),
    reward_scale=fields.Field(
        float, default=1000.0, low=0, above_low=True,
        help='What returns to go are divided by.',
    ),
    parts=fields.Field(
        tuple, items=float, default=(0.9, 0.05, 0.05),
        help='The shares of episodes for train, validation and test.',
    ),
)


@dataclasses.dataclass(frozen=True)
class Episodes:
  """`E` episodes, one after another, `N` steps in all.

  Attributes:
    observations: `[N, S]` float32.
    actions: `[N, A]` float32.
    rewards: `[N]` float32.
    ends: The step after the last one of each episode, `[E]` int64.
    environment: The name of the environment; '' if it is not known.
  """

  observations: np.ndarray
  actions: np.ndarray
  rewards: np.ndarray
  ends: np.ndarray
  environment: str = ''

  @property
  def starts(self) -> np.ndarray:
    """The first step of each episode, `[E]`."""
    return np.concatenate([[0], self.ends[:-1]])

  @property
  def lengths(self) -> np.ndarray:
    """The steps of each episode, `[E]`."""
    return np.diff(self.ends, prepend=0)

  @property
  def returns(self) -> np.ndarray:
    """The sum of the rewards of each episode, `[E]` float64."""
    return np.add.reduceat(self.rewards.astype(np.float64), self.starts)


def returns_to_go(episodes: Episodes) -> np.ndarray:
  """Returns the sums of the rewards from each step on, `[N]` float64.

  >>> rewards = np.array([1.0, 2.0, 3.0, 4.0])
  >>> returns_to_go(Episodes(None, None, rewards, np.array([3, 4])))
  array([6., 5., 3., 4.])
  """
  whole = np.cumsum(episodes.rewards[::-1], dtype=np.float64)[::-1]
  after = np.append(whole, 0)[episodes.ends]  # What later episodes add.
  return whole - np.repeat(after, episodes.lengths)


def dataset(
    episodes: Episodes,
    config: Any,
    shard: pipeline.Shard,
    seed: int,
    *,
    name: str,
    unit_scores: tuple[float, float] | None = None,
) -> pipeline.Dataset:
  """Returns windows of episodes as a `Dataset`.

  An observation loses its mean over the train part, and is divided by its
  deviation there. Actions are divided by the largest there, if that is beyond
  1, so that they are in [-1, 1]. `source` holds these numbers and the rest of
  what it takes to act: `environment`, `observation_mean`, `observation_scale`,
  `action_scale`, `reward_scale` and the best and the mean return of the train
  part.

  Args:
    episodes: The episodes.
    config: Has the attributes of `FIELDS`.
    shard: The rows of this process.
    seed: Fixes the order of the training windows.
    name: The name of the data set.
    unit_scores: The returns that count as 0 and 100, if there are any.

  Raises:
    UserValueError: If no episode is as long as a window, or a part is empty.
  """
  length, longest = config.sequence_length, int(episodes.lengths.max())
  if length > longest:
    raise errors.UserValueError(
        f'data.sequence_length {length} is longer than every episode of '
        f'{name}: the longest has {longest} steps. Make it smaller.'
    )
  part_of = split(len(episodes.ends), config.parts)
  step_part = np.repeat(part_of, episodes.lengths)
  in_train = step_part == 0
  observations = episodes.observations
  mean = observations[in_train].mean(0, dtype=np.float64)
  scale = observations[in_train].std(0, dtype=np.float64) + _SMALL
  action_scale = np.maximum(np.abs(episodes.actions[in_train]).max(0), 1)
  number = np.arange(len(observations)) - np.repeat(
      episodes.starts, episodes.lengths
  )
  targets = (episodes.actions / action_scale).astype(np.float32)
  before = np.where(number[:, None] > 0, np.roll(targets, 1, axis=0), 0)
  rows = np.concatenate([
      returns_to_go(episodes)[:, None] / config.reward_scale,
      (observations - mean) / scale, before, number[:, None],
  ], axis=1).astype(np.float32)
  ends = np.repeat(episodes.ends, episodes.lengths)
  windows = {}
  for index, part in enumerate(arrays.SPLITS):
    # Evaluation reads every step once.
    chosen = step_part == index
    if part != 'train':
      chosen &= number % length == 0
    windows[part] = np.flatnonzero(chosen)

  def batch(part, training, numbers):
    firsts = windows[part]
    counted = numbers < len(firsts)
    first = firsts[np.minimum(numbers, len(firsts) - 1)]
    steps = first[:, None] + np.arange(length)
    exists = steps < ends[first][:, None]
    steps = np.minimum(steps, len(rows) - 1)
    return dict(
        inputs=np.where(exists[..., None], rows[steps], 0),
        targets=np.where(exists[..., None], targets[steps], 0),
        input_mask=exists,
        mask=exists if training else exists & counted[:, None],
    )

  returns = episodes.returns[part_of == 0]
  facts = dict(best_return=float(returns.max()), mean_return=float(
      returns.mean()
  ))
  digest = hashlib.sha256(rows.tobytes() + targets.tobytes())
  return pipeline.Dataset(
      name=name,
      task='decisions',
      batch_size=shard.batch_size,
      sequence_length=length,
      in_features=rows.shape[1],
      out_features=targets.shape[1],
      per_step=True,
      # Actions are inputs of the next step.
      forecast=True,
      train=shard.shuffled(len(windows['train']), seed).map(
          functools.partial(batch, 'train', True)
      ),
      evaluation={
          part: shard.evaluate(len(windows[part])).map(
              functools.partial(batch, part, False)
          )
          for part in arrays.SPLITS[1:]
      },
      baselines=functools.partial(
          _baselines, targets, in_train, step_part == 2, facts
      ),
      source=dict(
          examples={part: len(u) for part, u in windows.items()},
          episodes=np.bincount(part_of, minlength=3).tolist(),
          sha256=digest.hexdigest(),
          environment=episodes.environment,
          observation_mean=mean.tolist(),
          observation_scale=scale.tolist(),
          action_scale=action_scale.astype(np.float64).tolist(),
          reward_scale=float(config.reward_scale),
          unit_scores=unit_scores and list(unit_scores),
          **facts,
      ),
  )


def split(count: int, shares) -> np.ndarray:
  """Returns the part of each episode: 0 train, 1 validation, 2 test.

  >>> np.bincount(split(20, (0.8, 0.1, 0.1)))
  array([16,  2,  2])

  Args:
    count: The number of episodes.
    shares: The shares of the parts; each has one episode at least.

  Raises:
    UserValueError: If the shares are wrong, or there are too few episodes.
  """
  if len(shares) != 3 or min(shares) <= 0 or not abs(sum(shares) - 1) <= 1e-6:
    raise errors.UserValueError(
        'data.parts must be three positive shares that add up to 1 (train, '
        f'validation, test), got {fields.shown(shares)}.'
    )
  if count < 3:
    raise errors.UserValueError(
        f'There are {count} whole episodes, but train, validation and test '
        'need one each.'
    )
  validation = min(max(1, round(count * shares[1])), count - 2)
  test = min(max(1, round(count * shares[2])), count - 1 - validation)
  order = np.random.default_rng(_SPLIT_SEED).permutation(count)
  part = np.zeros(count, np.int64)
  part[order[:validation]] = 1
  part[order[validation:validation + test]] = 2
  return part


def _baselines(
    targets, in_train, in_test, facts: Mapping[str, float]
) -> dict[str, float]:
  """Returns the error of the mean action, and the returns of the data."""
  mean = targets[in_train].mean(0, dtype=np.float64)
  error = float(np.mean((targets[in_test] - mean) ** 2))
  return dict(mean_action_mse=error, **facts)
