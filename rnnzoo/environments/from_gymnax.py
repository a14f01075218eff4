"""Environments of gymnax, https://github.com/RobertTLange/gymnax.

They need the extra `rl`; the package is imported when one of them is built.
"""

import dataclasses
import functools
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.environments import base


@dataclasses.dataclass(frozen=True)
class Gymnax(base.Environment):
  """An environment of gymnax, with its default parameters.

  The state is that of gymnax. A time limit truncates an episode.

  Attributes:
    id: The name in gymnax, such as `MemoryChain-bsuite`.
  """

  id: str = 'CartPole-v1'

  def __post_init__(self):
    for space in ('observation', 'action'):
      getattr(self, space)  # A mistake shows now.

  @functools.cached_property
  def _made(self):
    """The environment of gymnax and its parameters."""
    try:
      gymnax: Any = importlib.import_module('gymnax')
    except ImportError as error:
      raise errors.UserError(
          f'The environment {self.id} needs gymnax ({error}): pip install '
          'gymnax.'
      ) from error
    if self.id not in gymnax.registered_envs:
      raise errors.UserValueError(
          f'gymnax has no environment {self.id!r}.'
          f'{errors.suggest(self.id, gymnax.registered_envs)} It has '
          f'{", ".join(gymnax.registered_envs)}.'
      )
    return gymnax.make(self.id)

  @functools.cached_property
  def observation(self):
    environment, params = self._made
    return self._converted(environment.observation_space, params)

  @functools.cached_property
  def action(self):
    environment, params = self._made
    return self._converted(environment.action_space, params)

  @property
  def max_steps(self):
    return int(self._made[1].max_steps_in_episode)

  def reset(self, key):
    environment, params = self._made
    observation, state = environment.reset_env(key, params)
    return state, observation

  def step(self, key, state, action):
    environment, params = self._made
    observation, state, reward, terminated, _ = environment.step_env(
        key, state, action, params
    )
    return (
        state, observation, jnp.asarray(reward, jnp.float32),
        jnp.asarray(terminated, bool),
        jnp.asarray(environment.is_truncated(state, params), bool),
    )

  def _converted(self, make_space, params):
    """Returns a space of gymnax as one of ours."""
    with jax.ensure_compile_time_eval():  # Its limits are arrays.
      space = make_space(params)
    if hasattr(space, 'n'):
      return base.Discrete(int(space.n))
    if not hasattr(space, 'low'):
      raise errors.UserValueError(
          f'{self.id} of gymnax cannot be used: its observations and actions '
          f'must be Discrete or Box, got {space!r}.'
      )
    low, high = (
        float(np.ravel(u)[0]) if np.ptp(np.ravel(u)) == 0 else limit
        for u, limit in ((space.low, -math.inf), (space.high, math.inf))
    )
    return base.Box(tuple(space.shape), low, high)
