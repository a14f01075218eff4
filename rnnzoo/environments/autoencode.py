"""Autoencode of POPGym (Morad et al., 2023), arXiv:2303.01859."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.environments import base
from rnnzoo.environments import cards

_DECKS = dict(easy=1, medium=2, hard=3)
_PLAY, _WATCH = 0, 1  # The first part of an observation.


class AutoencodeState(NamedTuple):
  """The suits in the order in which they come, and the number of steps made."""

  suits: jax.Array
  time: jax.Array


@dataclasses.dataclass(frozen=True)
class Autoencode(base.Environment):
  """Watch all suits of some decks, then name them in reverse order.

  An observation is `(mode, suit)`. The mode is 1 while the agent watches, when
  its actions have no effect, and 0 from the last card on, when it has to name
  the last card, then the one before, and so on. The rewards of an episode add
  up to 1 if all answers are right, and to -0.5 on average for guesses.

  >>> environment = Autoencode('medium')
  >>> environment.max_steps, environment.observation
  (207, MultiDiscrete(sizes=(2, 4)))

  Attributes:
    level: `easy`, `medium` or `hard`: one, two or three decks.
  """

  level: Literal['easy', 'medium', 'hard'] = 'easy'

  @property
  def observation(self):
    return base.MultiDiscrete((2, cards.SUITS))

  @property
  def action(self):
    return base.Discrete(cards.SUITS)

  @property
  def max_steps(self):
    return 2 * _DECKS[self.level] * cards.DECK - 1

  def reset(self, key):
    suits = cards.shuffled_suits(key, _DECKS[self.level])
    return AutoencodeState(suits, jnp.int32(0)), jnp.stack([_WATCH, suits[0]])

  def step(self, key, state, action):
    del key  # The cards are shuffled already.
    suits, time = state
    last = suits.size - 1
    watching = time < last
    # Time `last` asks for the last card, and the end for the first one.
    right = action == suits[jnp.maximum(2 * last - time, 0)]
    reward = jnp.where(right, 1 / suits.size, -1 / suits.size)
    reward = jnp.where(watching, 0.0, reward).astype(jnp.float32)
    time = time + 1
    observation = jnp.stack([
        jnp.where(time < last, _WATCH, _PLAY),
        jnp.where(watching, suits[jnp.minimum(time, last)], 0),
    ])
    state = AutoencodeState(suits, time)
    return (
        state, observation, reward, time == self.max_steps, jnp.bool_(False)
    )
