"""Distributions of actions, as functions of the numbers that a policy gives."""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from rnnzoo import environments
from rnnzoo import errors


class Distribution(Protocol):
  """How numbers `policy` `[..., N]` define the distribution of an action."""

  def sample(self, key: jax.Array, policy: jax.Array) -> jax.Array:
    """Returns random actions."""
    ...

  def mode(self, policy: jax.Array) -> jax.Array:
    """Returns the most probable actions."""
    ...

  def log_prob(self, policy: jax.Array, action: jax.Array) -> jax.Array:
    """Returns the logarithms of probabilities or of densities `[...]`."""
    ...

  def entropy(self, policy: jax.Array) -> jax.Array:
    """Returns the entropies `[...]`, in nats."""
    ...

  def to_environment(self, action: jax.Array) -> jax.Array:
    """Returns the action as the environment takes it."""
    ...

  def encode(self, action: jax.Array) -> jax.Array:
    """Returns a vector that tells a policy what it did."""
    ...


class Categorical:
  """One of some actions; `policy` holds the logits.

  >>> categorical = Categorical(environments.Discrete(2))
  >>> categorical.entropy(jnp.zeros(2)) / jnp.log(2)
  Array(1., dtype=float32)
  """

  def __init__(self, space: environments.Discrete):
    self.space = space

  def sample(self, key, policy):
    return jax.random.categorical(key, policy)

  def mode(self, policy):
    return policy.argmax(-1)

  def log_prob(self, policy, action):
    logs = jax.nn.log_softmax(policy)
    return jnp.take_along_axis(logs, action[..., None], -1)[..., 0]

  def entropy(self, policy):
    logs = jax.nn.log_softmax(policy)
    return -(jnp.exp(logs) * logs).sum(-1)

  def to_environment(self, action):
    return action

  def encode(self, action):
    return self.space.encode(action)


class Gaussian:
  """Real numbers; `policy` holds means and logarithms of deviations.

  To the policy the limits of an action are -1 and 1. Outside of them the
  environment acts as at the limit.

  >>> space = environments.Box((1,), -2.0, 2.0)
  >>> Gaussian(space).to_environment(jnp.array([0.5, 3.0]))
  Array([1., 2.], dtype=float32)
  """

  def __init__(self, space: environments.Box):
    self.space = space

  def sample(self, key, policy):
    mean, log_std = jnp.split(policy, 2, -1)
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

  def mode(self, policy):
    return jnp.split(policy, 2, -1)[0]

  def log_prob(self, policy, action):
    mean, log_std = jnp.split(policy, 2, -1)
    z = (action - mean) * jnp.exp(-log_std)
    return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

  def entropy(self, policy):
    _, log_std = jnp.split(policy, 2, -1)
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

  def to_environment(self, action):
    low, high = self.space.low, self.space.high
    return low + (jnp.clip(action, -1, 1) + 1) / 2 * (high - low)

  def encode(self, action):
    return jnp.clip(action, -1, 1)


def of_space(space: environments.Space) -> Distribution:
  """Returns the distribution for a space of actions.

  Raises:
    UserValueError: If there is none.
  """
  if isinstance(space, environments.Discrete):
    return Categorical(space)
  if isinstance(space, environments.Box) and (
      len(space.shape) == 1 and math.isfinite(space.low + space.high)
  ):
    return Gaussian(space)
  raise errors.UserValueError(
      'The actions of an environment must be a Discrete space, or a Box of '
      f'one axis with limits, got {space}.'
  )
