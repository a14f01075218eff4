"""Decks of cards, of which the games here look at the suits only."""

import jax
import jax.numpy as jnp

SUITS, DECK = 4, 52


def shuffled_suits(key: jax.Array, decks: int) -> jax.Array:
  """Returns the suits of some decks in random order, `[52 * decks]`, int32.

  >>> jnp.bincount(shuffled_suits(jax.random.key(0), 2))
  Array([26, 26, 26, 26], dtype=int32)
  """
  suits = jnp.arange(decks * DECK) % SUITS
  return suits[jnp.argsort(jax.random.uniform(key, suits.shape))]
