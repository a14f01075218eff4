"""The T-maze (Bakker, 2001): a sign at the start says where to turn."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.environments import base

_NOTHING, _JUNCTION = 2, 3  # Observations; 0 and 1 are the two signs.
_FORWARD = 2  # An action; 0 and 1 turn.


class TMazeState(NamedTuple):
  """The side of the goal, the place in the corridor, the steps made."""

  goal: jax.Array
  place: jax.Array
  time: jax.Array


@dataclasses.dataclass(frozen=True)
class TMaze(base.Environment):
  """Read a sign, walk through a corridor, and turn to the side of the sign.

  The sign is seen at the first step only. The actions are to turn to side 0,
  to turn to side 1, and to walk on. A turn in the corridor or a walk into the
  wall at its end costs 0.1 and changes nothing. A turn at the junction ends the
  episode, with a reward of 1 for the right side and of -1 for the other: 0 on
  average without memory. An agent that is not there after `2 * length` steps
  gets -1.

  >>> environment = TMaze(length=5)
  >>> environment.observation, environment.max_steps
  (Discrete(size=4), 10)

  Attributes:
    length: The number of steps between the sign and the junction.
  """

  length: int = 10

  @property
  def observation(self):
    return base.Discrete(4)

  @property
  def action(self):
    return base.Discrete(3)

  @property
  def max_steps(self):
    return 2 * self.length

  def reset(self, key):
    goal = jax.random.bernoulli(key).astype(jnp.int32)
    return TMazeState(goal, jnp.int32(0), jnp.int32(0)), goal

  def step(self, key, state, action):
    del key  # Only the sign is random.
    goal, place, time = state
    at_junction, walks = place == self.length, action == _FORWARD
    turned = at_junction & ~walks
    place = jnp.where(walks & ~at_junction, place + 1, place)
    time = time + 1
    late = (time >= self.max_steps) & ~turned
    outcome = jnp.where(action == goal, 1.0, -1.0)
    reward = jnp.where(at_junction == walks, -0.1, 0.0)
    reward = jnp.where(turned, outcome, reward)
    reward = jnp.where(late, -1.0, reward).astype(jnp.float32)
    observation = jnp.where(place == self.length, _JUNCTION, _NOTHING)
    return (
        TMazeState(goal, place, time), observation, reward, turned | late,
        jnp.bool_(False),
    )
