"""States of a sequence in levels, as the nodes of a Fenwick tree.

Positions count from 0 at the start of each sequence. For the token at position
t, a token at s <= t is in level 0 if s = t, and else in the level that is the
number of bits of `t ^ s`: level l holds `2^(l-1)` tokens in a row. One state
for each level from 1 on summarises its tokens. When the position moves on from
c to c', let m be the number of bits of `c' ^ c`. Then all levels below m merge
into level m, and the others stay.

With `L` levels, the last one holds all tokens that are older, too: levels above
it count as the last. So only the last `L - 1` bits of a position matter, and a
position never overflows.

Axes: `B` batch, `H` heads, `Q` tokens of a chunk, `L` levels, `N = L - 1`
states. The state of level l is at index l - 1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import core
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.ops import attention_cache
from rnnzoo.ops import checking
from rnnzoo.ops import chunkwise
from rnnzoo.ops import exact

# The scan holds a position as a float32, which is exact up to so many bits.
MOST_LEVELS = 25


class LevelState(NamedTuple):
  """The state of a sequence.

  Attributes:
    levels: The states of the levels from 1 on, `[B, H, L-1, K, V]`.
    count: The number of tokens of the sequence so far `[B]`, int32. After
      `2**32` tokens, it starts again from 0, which changes nothing.
  """

  levels: jax.Array
  count: jax.Array


def empty_level_state(
    batch: int, heads: int, levels: int, keys: int, values: int,
    dtype=jnp.float32,
) -> LevelState:
  """Returns the state before the first token: zeros.

  >>> empty_level_state(1, 2, 4, 5, 6).levels.shape
  (1, 2, 3, 5, 6)
  """
  return LevelState(
      jnp.zeros((batch, heads, levels - 1, keys, values), dtype),
      jnp.zeros((batch,), jnp.int32),
  )


class Places(NamedTuple):
  """The levels in one chunk of tokens; index l - 1 stands for level l.

  Attributes:
    pairs: The level of token j for token i, `[B, 1, Q, Q]`.
    moved: For token i, levels of the state that enters the chunk that are below
      this one count as it, `[B, 1, Q]`; 0 for none.
    left: The level of token j in the state that leaves, `[B, 1, Q]`, at least
      1.
    merged: Levels below this one merge into it in the state that leaves, `[B,
      1]`.
    count: The position after the chunk `[B]`, without its bits above `L - 1`.
  """

  pairs: jax.Array
  moved: jax.Array
  left: jax.Array
  merged: jax.Array
  count: jax.Array


def places(
    count: jax.Array,
    present: jax.Array,
    visible: chunkwise.Visibility,
    levels: int,
) -> Places:
  """Returns the `Places` of a chunk.

  Args:
    count: The position before the chunk `[B]`.
    present: 1 for each token that is present, else 0, `[B, 1, Q]`.
    visible: See `chunkwise.Visibility`.
    levels: `L`.
  """
  number = present.astype(jnp.int32)
  start = count.astype(jnp.int32)[:, None]
  own = jnp.where(visible.pairs, number[..., None, :], 0).sum(-1)
  position = jnp.where(visible.state, start[..., None], 0) + own - 1
  end = jnp.where(visible.through, start, 0)
  end = end + jnp.where(visible.last, number, 0).sum(-1)
  level = lambda a, b: number_of_bits(a ^ b, levels)
  return Places(
      level(position[..., None], position[..., None, :]),
      level(position, start[..., None]),
      jnp.maximum(level(position, end[..., None]), 1),
      level(start, end),
      (end[:, 0] & mask_of(levels)).astype(count.dtype),
  )


def starts(
    count: jax.Array,
    time: int,
    levels: int,
    reset: jax.Array | None,
    mask: jax.Array | None,
) -> jax.Array:
  """Returns the position before each token, `[B, T]`, as in `Places.count`.

  Args:
    count: The position before the first token `[B]`.
    time: `T`.
    levels: `L`.
    reset: Booleans `[B, T]` or `None`.
    mask: Booleans `[B, T]` or `None`.
  """
  before = attention_cache.sequence_positions(
      count, time, reset=reset, mask=mask
  )
  if mask is not None:  # An absent token counts as the one before it.
    before = before + ~mask
  return before & mask_of(levels)


def merged(before: jax.Array, after: jax.Array, levels: int) -> jax.Array:
  """Returns the level that all below it merge into between two positions."""
  return number_of_bits(before ^ after, levels)


def after_step(
    state: LevelState,
    levels: jax.Array,
    new: jax.Array,
    y: jax.Array,
    mask: jax.Array | None,
) -> tuple[LevelState, jax.Array]:
  """Returns the state after one token, and its output, 0 where it is absent.

  Args:
    state: The state before the token.
    levels: The levels of `state` after the decay, `[B, H, N, K, V]`.
    new: What the token adds `[B, H, K, V]`.
    y: The output `[B, H, V]` of the token.
    mask: Booleans `[B]`, `False` where it is absent, or `None`.
  """
  number = levels.shape[2] + 1
  level = merged(state.count, state.count + 1, number)[:, None]
  here = jnp.arange(1, number) == level[..., None]
  new = jnp.where(here[..., None, None], new[:, :, None], 0)
  levels, count = merge(levels, level) + new, state.count + 1
  if mask is not None:
    where = lambda u, v: jnp.where(
        mask.reshape(mask.shape + (1,) * (u.ndim - 1)), u, v
    )
    levels, count = where(levels, state.levels), where(count, state.count)
    y = where(y, 0)
  return LevelState(levels, count), y


def number_of_bits(n: jax.Array, levels: int) -> jax.Array:
  """Returns the number of bits of `n`, at most `levels - 1`."""
  return jnp.minimum(jnp.iinfo(n.dtype).bits - jax.lax.clz(n), levels - 1)


def mask_of(levels: int) -> int:
  """Returns the bits of a position that matter."""
  return (1 << (levels - 1)) - 1


def scales_of_pairs(scales: jax.Array, places: Places) -> jax.Array:
  """Returns the scale of token j for token i, `[B, H, Q, Q]`.

  Args:
    scales: `[B, H, Q, L]`.
    places: Of the chunk.
  """
  return _at(scales, places.pairs, 'bhil,bxijl->bhij')


def scales_of_states(scales: jax.Array, places: Places) -> jax.Array:
  """Returns the scale of each state that enters for token i, `[B, H, Q, N]`."""
  moved = places.moved
  above = _at(scales, moved, 'bhil,bxil->bhi')[..., None]
  stays = jnp.arange(1, scales.shape[-1]) >= moved[..., None]
  return jnp.where(stays, scales[..., 1:], above)


def _at(scales, level, equation):
  one_hot = level[..., None] == jnp.arange(scales.shape[-1])
  return exact.einsum(equation, scales, one_hot.astype(scales.dtype))


def merge(S: jax.Array, level: jax.Array) -> jax.Array:
  """Merges all levels below `level` `[B, 1]` of `S` `[B, H, N, K, V]` into it.

  No number of a level that stays is changed.
  """
  own = jnp.arange(1, S.shape[2] + 1)
  column = lambda flag: flag[..., None, None]
  below = column(own < level[..., None])
  total = jnp.where(below, S, 0).sum(2, keepdims=True)
  here = column(own == level[..., None])
  return jnp.where(below, 0, S) + jnp.where(here, total, 0)


def into_levels(u: jax.Array, level: jax.Array, levels: int) -> jax.Array:
  """Returns `u` in its level and zeros in others, `[..., N, Q, V]`.

  Args:
    u: `[..., Q, V]`.
    level: The level of each token `[..., Q]`, at least 1.
    levels: `L`.
  """
  own = jnp.arange(1, levels)[:, None]
  here = (level[..., None, :] == own)[..., None]
  return jnp.where(here, u[..., None, :, :], 0)


def checked(
    scales: Any,
    state: LevelState | None,
    v: jax.Array,
    S: jax.Array,
    axes: Sequence[str],
) -> tuple[jax.Array, LevelState]:
  """Returns the scales and the state as arrays, zeros if `None`, or raises.

  Args:
    scales: As given by the caller, `[..., H, L]`.
    state: The state before the first token, or `None`.
    v: Values `[..., H, V]`.
    S: A state without levels `[B, H, K, V]`, for its shape and dtype.
    axes: The letters of the axes in front of the levels.
  """
  scales = jnp.asarray(scales)
  if scales.ndim != v.ndim or scales.shape[:-1] != v.shape[:-1]:
    raise ValueError(
        f'`level_scales` must be {checking.brackets([*axes, "L"])}, '
        f'{v.shape[:-1]} and L, got {scales.shape}.'
    )
  checking.are_floating(level_scales=scales)
  levels = scales.shape[-1]
  if not 2 <= levels <= MOST_LEVELS:
    raise ValueError(
        f'`level_scales` must have 2 to {MOST_LEVELS} levels, got {levels}.'
    )
  rows, heads, keys, values = S.shape
  dtype = jnp.promote_types(S.dtype, scales.dtype)
  empty = empty_level_state(rows, heads, levels, keys, values, dtype)
  return scales, checking.state_tuple(state, empty)


def check_length(
    count: jax.Array,
    levels: int,
    time: int = 1,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
):
  """Raises if a sequence is known to be longer than its levels can hold.

  Args:
    count: The position before the first token `[B]`.
    levels: `L`, for `2^(L-1)` tokens.
    time: `T`.
    reset: Booleans `[B, T]` or `None`.
    mask: Booleans `[B, T]` or `None`.

  Raises:
    UserValueError: If values are known and do not fit. Under `jax.jit`, only
      shapes are: then more than `2^(L-1)` tokens without flags do not fit.
  """
  room = 1 << (levels - 1)
  known = all(
      u is None or not isinstance(u, core.Tracer) and _is_local(u)
      for u in (count, reset, mask)
  )
  if reset is None and mask is None and (not known or not np.size(count)):
    longest = time
  elif known and np.size(count) and time:
    with jax.ensure_compile_time_eval():
      positions = attention_cache.sequence_positions(
          count, time, reset=reset, mask=mask
      )
    positions = np.asarray(positions).astype(np.uint32)
    longest = 1 + int(np.max(
        positions, where=True if mask is None else np.asarray(mask), initial=0
    ))
  else:
    return
  if longest > room:
    more = (longest - 1).bit_length() + 1
    raise errors.UserValueError(
        f'{levels} levels hold sequences of at most {room} tokens, got '
        f'{longest}; take {more} levels, or reset the state.'
    )


def check_length_of_step(
    count: jax.Array, levels: int, mask: jax.Array | None
):
  """Does the same for one token, with `mask` `[B]` or `None`."""
  check_length(count, levels, mask=None if mask is None else mask[:, None])


def _is_local(u):
  return getattr(u, 'is_fully_addressable', True)
