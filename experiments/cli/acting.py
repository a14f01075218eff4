"""Lets a decision model act in environments of gymnasium.

There are two ways. `carried`: the state goes on through the whole episode, one
`step` of the model for each step of the environment. `reread`: the model reads
the last `K` steps again each time, as it was trained, and as the Decision
Transformer acts.
"""

from collections.abc import Mapping
import re
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors

WAYS = ('carried', 'reread')
_NEEDED = (
    'environment', 'observation_mean', 'observation_scale', 'action_scale',
    'reward_scale', 'best_return', 'mean_return', 'unit_scores',
)


class Facts(NamedTuple):
  """What a run knows of its data, see `data.control.episodes.dataset`.

  Attributes:
    environment: The name in gymnasium; '' if it is not known.
    mean: What is subtracted from an observation, `[S]`.
    scale: What the difference is divided by, `[S]`.
    action_scale: What an action of the model is multiplied by, `[A]`.
    reward_scale: What returns to go are divided by.
    best_return: The best return of the train part.
    mean_return: The mean return of the train part.
    unit_scores: The returns that count as 0 and 100, or `None`.
    window: `K`, the steps of a window.
  """

  environment: str
  mean: np.ndarray
  scale: np.ndarray
  action_scale: np.ndarray
  reward_scale: float
  best_return: float
  mean_return: float
  unit_scores: tuple[float, float] | None
  window: int


class Outcome(NamedTuple):
  """What came of some episodes.

  Attributes:
    returns: `[E]`.
    lengths: `[E]`.
    seconds: The median time that the model took for a step of all
      environments.
  """

  returns: np.ndarray
  lengths: np.ndarray
  seconds: float


def facts_of(run) -> Facts:
  """Returns the facts of a restored run.

  Raises:
    UserValueError: If the run is of another kind of task, or of data that does
      not say what it takes to act.
  """
  if run.task.name != 'decisions':
    raise errors.UserValueError(
        f'--workdir holds a run of {run.task.name}; only models of decisions '
        'act.'
    )
  data = run.data
  if missing := [name for name in _NEEDED if name not in data]:
    raise errors.UserValueError(
        f'The data of the run has no {missing[0]} in Dataset.source, which it '
        'takes to act; rnnzoo/data/control/episodes.py writes it.'
    )
  return Facts(
      data['environment'], np.array(data['observation_mean']),
      np.array(data['observation_scale']), np.array(data['action_scale']),
      data['reward_scale'], data['best_return'], data['mean_return'],
      data['unit_scores'] and tuple(data['unit_scores']),
      run.config['data']['sequence_length'],
  )


def make_environments(name: str, count: int, facts: Facts) -> list[Any]:
  """Returns environments that the policy of a run can act in.

  Args:
    name: The name in gymnasium; that of the data if empty.
    count: How many.
    facts: Those of the run.

  Raises:
    UserError: If gymnasium or the environment is not installed, or it is not
      the one of the data.
  """
  name = name or facts.environment
  if not name:
    raise errors.UserValueError(
        'The data does not say which environment it is from: pass '
        '--environment, such as Hopper-v5.'
    )
  own = facts.environment
  if own and _without_version(name) != _without_version(own):
    raise errors.UserValueError(
        f'The policy was trained on {own}, and --environment is {name}: it '
        'can act in its own environment only.'
    )
  install = "pip install 'gymnasium[mujoco]'"
  try:
    import gymnasium  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise errors.UserError(
        f'{name} needs gymnasium, which is not installed: {install}.'
    ) from error
  try:
    found = [
        gymnasium.make(name, disable_env_checker=True) for _ in range(count)
    ]
  except (gymnasium.error.Error, ImportError) as error:
    line = str(error).splitlines()[0].rstrip('.')
    raise errors.UserError(
        f'gymnasium cannot make {name}: {line}. MuJoCo is installed by '
        f'{install}.'
    ) from error
  sizes = found[0].observation_space.shape, found[0].action_space.shape
  wanted = facts.mean.shape, facts.action_scale.shape
  if sizes != wanted:
    raise errors.UserValueError(
        f'{name} has observations and actions of the sizes {sizes[0]} and '
        f'{sizes[1]}, the policy was trained with {wanted[0]} and {wanted[1]}: '
        'it can act in its own environment only.'
    )
  return found


def _without_version(name: str) -> str:
  return re.sub(r'-v\d+$', '', name)


class Policy:
  """A model as a function of the steps so far, compiled once."""

  def __init__(self, model, way: str, window: int):
    """Creates the policy.

    Args:
      model: A `models.DecisionModel`, or one that is called like it.
      way: One of `WAYS`.
      window: `K`, for `reread`.
    """
    definition, self._state = nnx.split(model)
    self._model, self._window = model, window
    self.way = way

    def carried(state, carry, x):
      return nnx.merge(definition, state).step(carry, x)

    def reread(state, carry, x):
      rows, exists = carry
      rows = jnp.concatenate([rows[:, 1:], x[:, None]], axis=1)
      exists = jnp.roll(exists, -1, axis=1).at[:, -1].set(True)
      _, actions = nnx.merge(definition, state)(rows, mask=exists)
      return (rows, exists), actions[:, -1]

    self._act = jax.jit(dict(carried=carried, reread=reread)[way])

  def start(self, batch_size: int) -> Any:
    """Returns what is known before the first step."""
    if self.way == 'carried':
      return self._model.initialize_carry(batch_size)
    shape = batch_size, self._window
    features = self._model.config.in_features
    return jnp.zeros((*shape, features)), jnp.zeros(shape, bool)

  def __call__(self, carry, x) -> tuple[Any, np.ndarray]:
    """Returns the new carry, and the actions `[B, A]` for the steps `x`."""
    carry, actions = self._act(self._state, carry, x)
    return carry, np.asarray(actions)


def play(
    policy: Policy, environments: list[Any], facts: Facts,
    target_return: float, seed: int,
) -> Outcome:
  """Runs one episode in each environment, all of them side by side.

  The return to go starts at `target_return` and loses each reward.

  Args:
    policy: The policy.
    environments: From `make_environments`.
    facts: Those of the run.
    target_return: What is asked for.
    seed: Environment `i` starts with `seed + i`.
  """
  count = len(environments)
  observations = np.stack([
      environment.reset(seed=seed + i)[0]
      for i, environment in enumerate(environments)
  ])
  alive = np.ones(count, bool)
  returns, lengths = np.zeros(count), np.zeros(count, int)
  before = np.zeros((count, len(facts.action_scale)))
  carry, number, seconds = policy.start(count), 0, []
  while alive.any():
    x = np.concatenate([
        (target_return - returns)[:, None] / facts.reward_scale,
        (observations - facts.mean) / facts.scale, before,
        np.full((count, 1), number),
    ], axis=1).astype(np.float32)
    start = time.perf_counter()
    carry, before = policy(carry, x)
    seconds.append(time.perf_counter() - start)
    for i in np.flatnonzero(alive):
      space = environments[i].action_space
      action = np.clip(before[i] * facts.action_scale, space.low, space.high)
      observations[i], reward, ended, cut, _ = environments[i].step(
          action.astype(space.dtype)
      )
      returns[i] += reward
      lengths[i] += 1
      alive[i] = not (ended or cut)
    number += 1
  return Outcome(returns, lengths, float(np.median(seconds)))


def summary(outcome: Outcome, facts: Facts) -> Mapping[str, Any]:
  """Returns an outcome for JSON, with the normalised score if there is one."""
  mean = float(outcome.returns.mean())
  found = dict(
      mean_return=round(mean, 2),
      deviation=round(float(outcome.returns.std()), 2),
      mean_length=round(float(outcome.lengths.mean()), 1),
      model_ms_per_step=round(1e3 * outcome.seconds, 4),
  )
  if facts.unit_scores:
    low, high = facts.unit_scores
    found['score'] = round(100 * (mean - low) / (high - low), 2)
  return dict(found, returns=[round(float(u), 2) for u in outcome.returns])
