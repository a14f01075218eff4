"""RepeatPrevious of POPGym (Morad et al., 2023), arXiv:2303.01859."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.environments import base
from rnnzoo.environments import cards

# The number of decks, and which card to name: 1 is the one just seen.
_LEVELS = dict(easy=(1, 4), medium=(2, 32), hard=(3, 64))


class RepeatPreviousState(NamedTuple):
  """The suits in the order in which they come, and how many were shown."""

  suits: jax.Array
  shown: jax.Array


@dataclasses.dataclass(frozen=True)
class RepeatPrevious(base.Environment):
  """See a suit at every step, and name the suit of some steps ago.

  With `easy` the agent names the fourth to last suit, with `medium` the 32nd,
  with `hard` the 64th, of one, two and three shuffled decks. The rewards of an
  episode add up to 1 if all answers are right and to -1 if all are wrong, and
  to -0.5 on average for guesses.

  >>> environment = RepeatPrevious()
  >>> environment.max_steps, environment.action
  (51, Discrete(size=4))

  Attributes:
    level: `easy`, `medium` or `hard`.
  """

  level: Literal['easy', 'medium', 'hard'] = 'easy'

  @property
  def observation(self):
    return base.Discrete(cards.SUITS)

  @property
  def action(self):
    return base.Discrete(cards.SUITS)

  @property
  def max_steps(self):
    decks, _ = _LEVELS[self.level]
    return decks * cards.DECK - 1

  @property
  def back(self) -> int:
    """Which suit to name: 1 is the one just seen."""
    return _LEVELS[self.level][1]

  def reset(self, key):
    decks, _ = _LEVELS[self.level]
    suits = cards.shuffled_suits(key, decks)
    return RepeatPreviousState(suits, jnp.int32(1)), suits[0]

  def step(self, key, state, action):
    del key  # The cards are shuffled already.
    suits, shown = state
    back = self.back
    unit = 1 / (suits.size - back)
    right = action == suits[jnp.maximum(shown - back, 0)]
    reward = jnp.where(right, unit, -unit)
    reward = jnp.where(shown >= back, reward, 0.0).astype(jnp.float32)
    state = RepeatPreviousState(suits, shown + 1)
    terminated = state.shown == suits.size
    return state, suits[shown], reward, terminated, jnp.bool_(False)
