"""Pendulum: swing it up and hold it, as in Gymnasium's Pendulum-v1."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.environments import base

_GRAVITY = 10.0
_SECONDS = 0.05  # Of a step.
_MAX_SPEED, _MAX_TORQUE = 8.0, 2.0


class PendulumState(NamedTuple):
  """The angle from upright, its velocity, and the number of steps made."""

  angle: jax.Array
  speed: jax.Array
  time: jax.Array


@dataclasses.dataclass(frozen=True)
class Pendulum(base.Environment):
  """Turn a pendulum upright with a torque that is too weak to lift it at once.

  The reward is minus the cost of the angle, the speed and the torque, so it is
  at most 0. All episodes have `time_limit` steps.

  >>> environment = Pendulum()
  >>> state, observation = environment.reset(jax.random.key(0))
  >>> observation.shape                              # cos, sin, velocity.
  (3,)

  Attributes:
    masked: Whether the observation lacks the velocity.
    time_limit: After this number of steps the episode is truncated.
  """

  masked: bool = False
  time_limit: int = 200

  @property
  def observation(self):
    return base.Box((2,) if self.masked else (3,))

  @property
  def action(self):
    return base.Box((1,), -_MAX_TORQUE, _MAX_TORQUE)

  @property
  def max_steps(self):
    return self.time_limit

  def reset(self, key):
    high = jnp.array([math.pi, 1.0])
    angle, speed = jax.random.uniform(key, (2,), minval=-high, maxval=high)
    state = PendulumState(angle, speed, jnp.int32(0))
    return state, self._observe(state)

  def step(self, key, state, action):
    del key  # Nothing is random.
    angle, speed, time = state
    torque = jnp.clip(action[0], -_MAX_TORQUE, _MAX_TORQUE)
    # The angle in [-pi, pi), however often the pendulum has turned.
    error = jnp.mod(angle + math.pi, 2 * math.pi) - math.pi
    cost = error**2 + 0.1 * speed**2 + 0.001 * torque**2
    # A rod of mass 1 and length 1 that turns about its end.
    rate = 1.5 * _GRAVITY * jnp.sin(angle) + 3 * torque
    speed = jnp.clip(speed + rate * _SECONDS, -_MAX_SPEED, _MAX_SPEED)
    state = PendulumState(angle + speed * _SECONDS, speed, time + 1)
    return (
        state, self._observe(state), -cost, jnp.bool_(False),
        state.time >= self.time_limit,
    )

  def _observe(self, state):
    seen = [jnp.cos(state.angle), jnp.sin(state.angle)]
    return jnp.stack(seen if self.masked else [*seen, state.speed])
