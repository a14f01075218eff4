"""The contract of an environment, and what actions and observations may be.

An environment is a pair of pure functions, so `jax.vmap` runs many of them and
`jax.lax.scan` runs them over time, in one compiled program with a policy.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

State = Any  # A NamedTuple of arrays; each environment has its own.


@dataclasses.dataclass(frozen=True)
class Discrete:
  """An integer from 0 to `size - 1`.

  >>> Discrete(3).encode(jnp.array([2, 0]))
  Array([[0., 0., 1.],
         [1., 0., 0.]], dtype=float32)
  """

  size: int

  @property
  def num_features(self) -> int:
    return self.size

  def encode(self, value: jax.Array) -> jax.Array:
    """Maps integers `[...]` to one-hot vectors `[..., size]`."""
    return jax.nn.one_hot(value, self.size)

  def sample(self, key: jax.Array) -> jax.Array:
    """Returns a random value."""
    return jax.random.randint(key, (), 0, self.size)


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
  """Several integers, the i-th of them from 0 to `sizes[i] - 1`.

  >>> MultiDiscrete((2, 3)).encode(jnp.array([1, 0]))
  Array([0., 1., 1., 0., 0.], dtype=float32)
  """

  sizes: tuple[int, ...]

  @property
  def num_features(self) -> int:
    return sum(self.sizes)

  def encode(self, value: jax.Array) -> jax.Array:
    """Maps integers `[..., n]` to their one-hot vectors, joined."""
    return jnp.concatenate([
        jax.nn.one_hot(value[..., i], size)
        for i, size in enumerate(self.sizes)
    ], -1)

  def sample(self, key: jax.Array) -> jax.Array:
    """Returns a random value."""
    return jax.random.randint(
        key, (len(self.sizes),), 0, jnp.array(self.sizes)
    )


@dataclasses.dataclass(frozen=True)
class Box:
  """Real numbers of a shape, each from `low` to `high`.

  >>> Box((2,), -2.0, 2.0).num_features
  2
  """

  shape: tuple[int, ...]
  low: float = -math.inf
  high: float = math.inf

  @property
  def num_features(self) -> int:
    return math.prod(self.shape)

  def encode(self, value: jax.Array) -> jax.Array:
    """Maps numbers `[..., *shape]` to vectors `[..., num_features]`."""
    batch = value.shape[: value.ndim - len(self.shape)]
    return value.reshape(*batch, self.num_features).astype(jnp.float32)

  def sample(self, key: jax.Array) -> jax.Array:
    """Returns a random value; a normal one where there are no limits."""
    if math.isfinite(self.low) and math.isfinite(self.high):
      return jax.random.uniform(
          key, self.shape, minval=self.low, maxval=self.high
      )
    return jnp.clip(jax.random.normal(key, self.shape), self.low, self.high)


Space = Discrete | MultiDiscrete | Box


@dataclasses.dataclass(frozen=True)
class Environment(abc.ABC):
  """One episode after another; subclasses are frozen dataclasses.

  The methods are functions of their arguments alone. They do not start a new
  episode by themselves: after `terminated` or `truncated` the caller calls
  `reset`, and until then the observation is the last one of the episode.

  Attributes:
    observation: The `Space` of observations.
    action: The `Space` of actions.
    max_steps: No episode has more steps.
  """

  @property
  @abc.abstractmethod
  def observation(self) -> Space: ...

  @property
  @abc.abstractmethod
  def action(self) -> Space: ...

  @property
  @abc.abstractmethod
  def max_steps(self) -> int: ...

  @abc.abstractmethod
  def reset(self, key: jax.Array) -> tuple[State, jax.Array]:
    """Returns the state and the observation at the start of an episode."""

  @abc.abstractmethod
  def step(
      self, key: jax.Array, state: State, action: jax.Array
  ) -> tuple[State, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Takes one action.

    Args:
      key: The source of what happens at random.
      state: From `reset`, or from the step before.
      action: A value of the space `action`.

    Returns:
      `(state, observation, reward, terminated, truncated)`: the reward is
      float32; `terminated` says that the episode has ended by its rules, and
      `truncated` that its time is over.
    """
