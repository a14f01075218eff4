"""Decays between the tokens of one chunk, for recurrences in chunks of tokens.

All decays are given as logarithms of at most 0. A decay between two tokens is
the sum of the log decays of the steps between them. No such sum is computed as
the difference of two longer ones, and no exponential is larger than 1. So
decays may be arbitrarily strong: nothing overflows and no digits are lost.
"""

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.ops import exact

# Its exponential is 0, but sums and products with it stay finite.
NEVER = -1e30


def finite(g: jax.Array, dtype) -> jax.Array:
  """Returns log decays in `dtype`, with `NEVER` in place of minus infinity.

  The gradient of a decay of 0 is 0.
  """
  return jnp.maximum(g.astype(dtype), NEVER)


def until(g: jax.Array, axis: int) -> jax.Array:
  """Returns the sum up to and including each token of a chunk."""
  return jnp.cumsum(g, axis=axis)


def after(g: jax.Array, axis: int) -> jax.Array:
  """Returns the sum over all tokens after each token of a chunk."""
  g = jax.lax.slice_in_dim(g, 1, None, axis=axis)
  padding = [(0, 0)] * g.ndim
  padding[axis] = (0, 1)
  return jnp.pad(jax.lax.cumsum(g, axis=axis % g.ndim, reverse=True), padding)


def delayed(u: jax.Array, axis: int, first=0) -> jax.Array:
  """Returns the value of the token before, `first` for the first token."""
  padding = [(0, 0)] * u.ndim
  padding[axis] = (1, 0)
  u = jnp.pad(u, padding, constant_values=first)
  return jax.lax.slice_in_dim(u, 0, -1, axis=axis)


def between(g: jax.Array) -> jax.Array:
  """Returns the log decay from every token of a chunk to every later one.

  The chunk is cut into halves, and each half into halves again. Every pair of
  tokens is cut apart exactly once. Its sum is that of the later token back to
  the border plus that of the earlier token up to the border.

  Args:
    g: Log decays `[..., Q]`, `Q` a power of two.

  Returns:
    `[..., Q, Q]`: at `[i, j]` the sum of `g` over `j < l <= i`; 0 where `j >
    i`.
  """
  from_border, to_border, apart = _borders(g.shape[-1])
  later = exact.einsum('lit,...t->...li', from_border.astype(g.dtype), g)
  earlier = exact.einsum('ljt,...t->...lj', to_border.astype(g.dtype), g)
  sums = jnp.zeros(g.shape + g.shape[-1:], g.dtype)
  for level, here in enumerate(apart):
    across = later[..., level, :, None] + earlier[..., level, None, :]
    sums = jnp.where(here, across, sums)
  return sums


def scores(q: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
  """Returns products of queries and keys whose features decay in between.

  Args:
    q: `[..., Q, K]`.
    k: `[..., Q, K]`.
    g: Log decays `[..., Q, K]`.

  Returns:
    `[..., Q, Q]`: at `[i, j]` the sum over features of `q_i k_j` times e to the
    sum of `g` over `j < l <= i`; 0 where `j > i`.
  """
  return all_scores((q,), (k,), g)[0][0]


def all_scores(queries, keys, g: jax.Array) -> list[list[jax.Array]]:
  """Returns `scores` of each of several queries with each of several keys.

  The exponentials, and their gradients, are computed once for all of them.

  Args:
    queries: Arrays `[..., Q, K]`.
    keys: Arrays `[..., Q, K]`.
    g: Log decays `[..., Q, K]`.

  Returns:
    For each of the queries, a list with an array `[..., Q, Q]` for each of the
    keys.
  """
  length = g.shape[-2]
  sums = [[(q * k).sum(-1)[..., None, None] for k in keys] for q in queries]
  size = 1
  while size < length:
    later, earlier = map(jnp.exp, _around_borders(g, size))
    halves = lambda u: u.reshape(
        *u.shape[:-2], length // (2 * size), 2, size, u.shape[-1]
    )
    behind = [halves(q)[..., 1, :, :] * later for q in queries]
    before = [halves(k)[..., 0, :, :] * earlier for k in keys]
    # One product for each pair: XLA:CPU of JAX 0.10.2 crashes on the gradient
    # of one product of arrays with more axes.
    sums = [
        [
            _join_halves(
                inner, exact.einsum('...ik,...jk->...ij', q, k), size
            )
            for inner, k in zip(row, before)
        ]
        for row, q in zip(sums, behind)
    ]
    size *= 2
  return [[u[..., 0, :, :] for u in row] for row in sums]


def _borders(length):
  """Says where each pair of tokens is cut apart, at every level of halving.

  Returns:
    Three arrays of booleans `[levels, Q, Q]`: at `[i, t]` whether token `t` is
    between the border and token i of a second half, i included; at `[j, t]`
    whether it is between token j of a first half and the border; and at `[i,
    j]` whether that pair is cut apart at this level.
  """
  token = np.arange(length)
  levels = []
  for level in range(length.bit_length() - 1):
    size = 1 << level
    border = token // (2 * size) * (2 * size) + size
    second = token >= border
    from_border = (token >= border[:, None]) & (token <= token[:, None])
    to_border = (token > token[:, None]) & (token < border[:, None])
    levels.append((
        from_border & second[:, None],
        to_border & ~second[:, None],
        (border == border[:, None]) & second[:, None] & ~second,
    ))
  return np.array(levels, bool).reshape(-1, 3, length, length).swapaxes(0, 1)


def _around_borders(g, size):
  """Sums `g` `[..., Q, K]` from the border in each block of `2 size` tokens.

  Returns:
    `[..., blocks, size, K]` of the second halves, from the border up to and
    including each token; and of the first halves, from after each token up to
    the border.
  """
  halves = g.reshape(
      *g.shape[:-2], g.shape[-2] // (2 * size), 2, size, g.shape[-1]
  )
  return until(halves[..., 1, :, :], -2), after(halves[..., 0, :, :], -2)


def _join_halves(sums, across, size):
  """Joins `[..., 2n, s, s]` within halves and `[..., n, s, s]` across them."""
  sums = sums.reshape(*across.shape[:-2], 2, size, size)
  first, second = sums[..., 0, :, :], sums[..., 1, :, :]
  above = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
  below = jnp.concatenate([across, second], axis=-1)
  return jnp.concatenate([above, below], axis=-2)
