"""CartPole (Barto, Sutton & Anderson, 1983), as in Gymnasium's CartPole-v1."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.environments import base

_GRAVITY, _FORCE = 9.8, 10.0
_CART, _POLE = 1.0, 0.1  # Masses.
_LENGTH = 0.5  # From the joint to the centre of the pole.
_SECONDS = 0.02  # Of a step.
_MAX_POSITION, _MAX_ANGLE = 2.4, math.radians(12)


class CartPoleState(NamedTuple):
  """The motion `(x, x', angle, angle')` `[4]` and the number of steps made."""

  motion: jax.Array
  time: jax.Array


@dataclasses.dataclass(frozen=True)
class CartPole(base.Environment):
  """Push a cart to the left or right so that the pole on it stays upright.

  Each step gives a reward of 1. The episode ends when the pole leans by more
  than 12 degrees or the cart is more than 2.4 from the centre.

  >>> environment = CartPole(masked=True)
  >>> state, observation = environment.reset(jax.random.key(0))
  >>> observation.shape                              # Position and angle.
  (2,)
  >>> state, observation, reward, terminated, truncated = environment.step(
  ...     jax.random.key(1), state, 1
  ... )
  >>> float(reward), bool(terminated)
  (1.0, False)

  Attributes:
    masked: Whether the observation lacks both velocities. A policy then has to
      remember earlier positions.
    time_limit: After this number of steps the episode is truncated.
  """

  masked: bool = False
  time_limit: int = 500

  @property
  def observation(self):
    return base.Box((2,) if self.masked else (4,))

  @property
  def action(self):
    return base.Discrete(2)

  @property
  def max_steps(self):
    return self.time_limit

  def reset(self, key):
    motion = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
    return CartPoleState(motion, jnp.int32(0)), self._observe(motion)

  def step(self, key, state, action):
    del key  # Nothing is random.
    x, speed, angle, turning = state.motion
    force = jnp.where(action == 1, _FORCE, -_FORCE)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    # The equations of motion without friction. Pole and cart push each other.
    mass, moment = _CART + _POLE, _POLE * _LENGTH
    push = (force + moment * turning**2 * sin) / mass
    turning_rate = (_GRAVITY * sin - cos * push) / (
        _LENGTH * (4 / 3 - _POLE * cos**2 / mass)
    )
    rate = push - moment * turning_rate * cos / mass
    # Euler's method: positions move with the velocities of before.
    change = jnp.stack([speed, rate, turning, turning_rate])
    motion = state.motion + _SECONDS * change
    time = state.time + 1
    terminated = (abs(motion[0]) > _MAX_POSITION) | (
        abs(motion[2]) > _MAX_ANGLE
    )
    return (
        CartPoleState(motion, time), self._observe(motion), jnp.float32(1),
        terminated, time >= self.time_limit,
    )

  def _observe(self, motion):
    return motion[::2] if self.masked else motion
