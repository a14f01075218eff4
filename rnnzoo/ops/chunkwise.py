"""What matrix-state recurrences share: time in chunks, and weights inside one.

    S_t = diag(e^{g_t}) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T    [K, V]
    y_t = S_t^T q_t

Inside a chunk of `Q` tokens everything is products of matrices; the states
between chunks go through one scan, and the backward pass computes each chunk
anew from the state that entered it. What is in memory grows as `T (K + V)`
plus `(T / Q) K V`, never as `T K V` or `T^2`.

Axes: `B` batch, `T` time, `H` heads, `K` features of a key, `V` of a value;
within a chunk `[B, H, Q, ...]`.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import mesh
from rnnzoo.ops import exact

# What e^x of it is 0 for, and yet sums and products of it stay finite.
NEVER = -1e30


class Sight(NamedTuple):
  """What tokens of a chunk see, where a sequence may start inside it.

  Attributes:
    pairs: Whether token i sees token j, `j <= i`: `[B, 1, Q, Q]`.
    state: Whether a token sees the state that entered the chunk: `[B, 1, Q]`.
    last: Whether the state that leaves sees a token: `[B, 1, Q]`.
    through: Whether the state that leaves sees the one that entered:
      `[B, 1]`.
  """

  pairs: jax.Array
  state: jax.Array
  last: jax.Array
  through: jax.Array


def scan_chunks(
    body: Callable[[Any, Any, Sight], tuple[Any, jax.Array]],
    state: Any,
    inputs: Any,
    reset: jax.Array | None,
    mask: jax.Array | None,
    chunk_size: int,
) -> tuple[Any, jax.Array]:
  """Runs a recurrence over time, a chunk at once.

  Absent steps, and those that fill the last chunk up, are zeros in all inputs;
  so log decays of 0, which keep the state, and keys of 0, which add nothing.
  What products mix must be finite: a token with a NaN or an infinity is read as
  zeros, and then everything of its own sequence from there on becomes NaN. In
  log decays minus infinity is a number like any other, see `log_decay`.

  Args:
    body: Maps a state, inputs `[B, H, Q, ...]` and what they see to the next
      state and outputs `[B, H, Q, V]`, or `None` for none.
    state: A tree of arrays `[B, ...]`, the state before the first step.
    inputs: A tree of arrays `[B, T, H, ...]`, T >= 0.
    reset: Booleans `[B, T]`, `True` where a new sequence starts, or `None`.
    mask: Booleans `[B, T]`, `False` where a step is absent, or `None`.
    chunk_size: `Q`, a power of two; shorter sequences have a smaller chunk.

  Returns:
    `(state, y)`: the state after the last step, and outputs `[B, T, H, V]` in
    the dtype that `body` gives, 0 where absent.
  """
  leaves = jax.tree.leaves(inputs)
  batch, time = leaves[0].shape[:2]
  length = chunk_length(time, chunk_size)
  count = -(-time // length)

  if not time:
    one = jax.tree.map(  # What a chunk of one token would be.
        lambda u: jax.ShapeDtypeStruct(
            (batch, u.shape[2], 1, *u.shape[3:]), u.dtype
        ),
        inputs,
    )
    _, y = jax.eval_shape(body, state, one, _sight(None, 1))
    return state, jax.tree.map(
        lambda u: jnp.zeros_like(
            leaves[0], u.dtype, shape=(batch, 0, u.shape[1], u.shape[3])
        ),
        y,
    )

  if mask is not None:
    reset = None if reset is None else reset & mask
  # XLA would look for a NaN in constant zeros while it compiles, for seconds.
  state = jax.lax.optimization_barrier(state)
  finite = _all_finite(inputs, 2)
  good_state = _all_finite(state, 1)
  bad = ~finite if mask is None else ~finite & mask
  spoilt = _spoilt(bad, ~good_state, reset)
  state = jax.tree.map(
      lambda u: jnp.where(_beside(good_state, u), u, 0), state
  )
  real = finite if mask is None else finite & mask

  def one_chunk(state, inputs, flags):
    real, spoilt, reset, mask = flags
    heads_first = lambda u: jnp.swapaxes(u, 1, 2)
    inputs = jax.tree.map(
        lambda u: heads_first(jnp.where(_beside(real, u), u, 0)), inputs
    )
    state, y = body(state, inputs, _sight(reset, length))
    if y is not None:
      y = jnp.where(spoilt[..., None, None], jnp.nan, heads_first(y))
      if mask is not None:
        y = jnp.where(mask[..., None, None], y, 0)
    return state, y

  fill = lambda u: jnp.pad(
      u, ((0, 0), (0, count * length - time)) + ((0, 0),) * (u.ndim - 2)
  )
  chunks = jax.tree.map(fill, (inputs, (real, spoilt, reset, mask)))
  first = jax.tree.map(lambda u: u[:, :length], chunks)
  # What `body` has of its surroundings has gradients, too.
  one_chunk, constants = jax.closure_convert(one_chunk, state, *first)
  leaves, structure = jax.tree.flatten((state, *chunks, tuple(constants)))
  state, inputs, flags, constants = structure.unflatten(
      mesh.same_varying(*leaves)
  )
  state, y = _loop(one_chunk, length, state, inputs, flags, constants)
  put_back = lambda u: jnp.where(_beside(spoilt[:, -1], u), jnp.nan, u)
  return jax.tree.map(put_back, state), None if y is None else y[:, :time]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(one_chunk, length, state, inputs, flags, constants):
  """Runs `one_chunk` over pieces of `length` of inputs and flags.

  The gradient is written out for the sake of memory: the inputs are read, and
  their gradients written, where they lie, so that there is no second copy of
  anything that is as long as time.
  """
  return _scan(one_chunk, length, state, inputs, flags, constants)[0]


def _forward(one_chunk, length, state, inputs, flags, constants):
  results, before = _scan(
      one_chunk, length, state, inputs, flags, constants, keep=True
  )
  return results, (before, inputs, flags, constants)


def _scan(one_chunk, length, state, inputs, flags, constants, keep=False):
  """Returns the results and, if `keep`, the states that entered the chunks."""
  at = _pieces(length, (inputs, flags))
  _, like = jax.eval_shape(one_chunk, state, *at(0), *constants)
  time = jax.tree.leaves(inputs)[0].shape[1]

  def body(carry, i):
    state, y = carry
    new, piece = one_chunk(state, *at(i), *constants)
    return (new, _put(y, piece, i * length)), state if keep else None

  y = jax.tree.map(
      lambda u: jnp.zeros((u.shape[0], time, *u.shape[2:]), u.dtype), like
  )
  first, y = _as_varying(inputs, state, y)
  return jax.lax.scan(body, (first, y), jnp.arange(time // length))


def _backward(one_chunk, length, saved, cotangents):
  before, inputs, flags, constants = saved
  d_state, d_y = cotangents
  at = _pieces(length, (inputs, flags, d_y))

  def body(carry, step):
    d_state, d_inputs, d_constants = carry
    i, state = step
    piece, flag, d_piece = at(i)
    run = lambda state, inputs, constants: one_chunk(
        state, inputs, flag, *constants
    )
    _, pull = jax.vjp(run, state, piece, constants)
    d_state, new, more = pull((d_state, d_piece))
    d_inputs = _put(d_inputs, new, i * length)
    return (d_state, d_inputs, jax.tree.map(jnp.add, d_constants, more)), None

  zeros = jax.tree.map(jnp.zeros_like, (inputs, constants))
  first = _as_varying(inputs, d_state, *zeros)
  count = jax.tree.leaves(before)[0].shape[0]
  (d_state, d_inputs, d_constants), _ = jax.lax.scan(
      body, first, (jnp.arange(count), before), reverse=True
  )
  return d_state, d_inputs, None, d_constants


_loop.defvjp(_forward, _backward)


def _pieces(length, tree):
  """Returns a function from `i` to the i-th pieces of arrays `[B, T, ...]`."""
  cut = lambda u, i: jax.lax.dynamic_slice_in_dim(u, i * length, length, 1)
  return lambda i: jax.tree.map(lambda u: cut(u, i), tree)


def _put(tree, pieces, start):
  """Writes pieces from `start` on into arrays `[B, T, ...]`."""
  put = jax.lax.dynamic_update_slice_in_dim
  return jax.tree.map(lambda u, v: put(u, v, start, 1), tree, pieces)


def _as_varying(like, *trees):
  """Marks what a loop carries as `like` is, inside a `jax.shard_map`."""
  leaves, structure = jax.tree.flatten(trees)
  some = jax.tree.leaves(like)[0]
  return structure.unflatten(mesh.same_varying(*leaves, some)[:-1])


def chunk_length(time: int, chunk_size: int) -> int:
  """Tokens in a chunk: `chunk_size`, or fewer where there are not so many.

  Raises:
    ValueError: If `chunk_size` is not a power of two.
  """
  if chunk_size < 1 or chunk_size & (chunk_size - 1):
    raise ValueError(
        f'`chunk_size` must be a power of two, got {chunk_size}.'
    )
  return min(chunk_size, 1 << max(time - 1, 0).bit_length())


def log_decay(g: jax.Array, dtype) -> jax.Array:
  """Log decays in `dtype`, minus infinity as a finite number that acts alike.

  The gradient into a decay of 0 is 0.
  """
  return jnp.maximum(g.astype(dtype), NEVER)


def pairs(g: jax.Array) -> jax.Array:
  """Log decays from every token of a chunk to every later one.

  Sums are never taken as the difference of two longer ones, so strong decays
  elsewhere in the chunk cost no digits. Tokens are parted in halves, and the
  halves in halves: a pair is parted once, and its sum is what the later token
  has behind it up to the border plus what the earlier one has before it.

  Args:
    g: Log decays `[..., Q]`, `Q` a power of two.

  Returns:
    `[..., Q, Q]`: at `[i, j]` the sum of `g` over `j < l <= i`; 0 where `j >
    i`.
  """
  behind, before, parted = _partings(g.shape[-1])
  later = exact.einsum('lit,...t->...li', behind.astype(g.dtype), g)
  earlier = exact.einsum('ljt,...t->...lj', before.astype(g.dtype), g)
  sums = jnp.zeros(g.shape + g.shape[-1:], g.dtype)
  for level, here in enumerate(parted):
    across = later[..., level, :, None] + earlier[..., level, None, :]
    sums = jnp.where(here, across, sums)
  return sums


def scores(q: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
  """Products of queries and keys, with a decay of each feature between them.

  As in `pairs`, so every exponential that is taken is at most 1, however strong
  the decays: nothing overflows, and what underflows is nothing.

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
  """`scores` of every one of some queries with every one of some keys.

  The decays, and what their gradients come to, are made once for all.

  Args:
    queries: Arrays `[..., Q, K]`.
    keys: Arrays `[..., Q, K]`.
    g: Log decays `[..., Q, K]`.

  Returns:
    A list for each of the queries, of an array `[..., Q, Q]` for each of the
    keys.
  """
  length = g.shape[-2]
  sums = [[(q * k).sum(-1)[..., None, None] for k in keys] for q in queries]
  size = 1
  while size < length:
    later, earlier = map(jnp.exp, _to_border(g, size))
    halves = lambda u: u.reshape(
        *u.shape[:-2], length // (2 * size), 2, size, u.shape[-1]
    )
    behind = [halves(q)[..., 1, :, :] * later for q in queries]
    before = [halves(k)[..., 0, :, :] * earlier for k in keys]
    # Products one by one: as one product of arrays with more axes XLA:CPU of
    # JAX 0.10.2 crashes on their gradient.
    sums = [
        [
            _with_halves(
                inner, exact.einsum('...ik,...jk->...ij', q, k), size
            )
            for inner, k in zip(row, before)
        ]
        for row, q in zip(sums, behind)
    ]
    size *= 2
  return [[u[..., 0, :, :] for u in row] for row in sums]


def up_to(g: jax.Array, axis: int) -> jax.Array:
  """What each token and all before it in the chunk come to: a running sum."""
  return jnp.cumsum(g, axis=axis)


def after(g: jax.Array, axis: int) -> jax.Array:
  """What all tokens behind each in the chunk come to, itself not counted."""
  g = jax.lax.slice_in_dim(g, 1, None, axis=axis)
  padding = [(0, 0)] * g.ndim
  padding[axis] = (0, 1)
  return jnp.pad(jax.lax.cumsum(g, axis=axis % g.ndim, reverse=True), padding)


def delayed(u: jax.Array, axis: int, first=0) -> jax.Array:
  """What the token before has, along `axis`; `first` for the first token."""
  padding = [(0, 0)] * u.ndim
  padding[axis] = (1, 0)
  u = jnp.pad(u, padding, constant_values=first)
  return jax.lax.slice_in_dim(u, 0, -1, axis=axis)


def entering(
    segments: mesh.Segments | None,
    summary: Callable[[Any, jax.Array | None], tuple[Any, Any]],
    combine: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    inputs: Any,
    reset: jax.Array | None,
    mask: jax.Array | None,
) -> Any:
  """Returns the state that enters the stretch of time of this device.

  Every device finds out what its tokens leave by themselves, and what becomes
  of a state on the way past them; these they tell each other.

  Args:
    segments: From `mesh.run_per_device`; if `None`, the state is the given one.
    summary: Maps inputs, zeros as in `scan_chunks`, and `reset` to `(way,
      state)`: what becomes of a state, in arrays `[B, ...]`, and what the
      tokens leave, as if `state` were zeros.
    combine: `combine(earlier, later)` of two adjacent stretches, each such a
      pair, is that of both; zeros for `earlier` give what `later` leaves.
    state: As for `scan_chunks`, and all the rest, too.
    inputs: `[B, T, H, ...]`, the part of this device.
    reset: `[B, T]` or `None`, likewise.
    mask: `[B, T]` or `None`, likewise.
  """
  if segments is None:
    return state
  if mask is not None:
    reset = None if reset is None else reset & mask
  finite, good_state = _all_finite(inputs, 2), _all_finite(state, 1)
  real = finite if mask is None else finite & mask
  bad = ~finite if mask is None else ~finite & mask
  zeros_unless = lambda flag, tree: jax.tree.map(
      lambda u: jnp.where(_beside(flag, u), u, 0), tree
  )
  way, left = summary(zeros_unless(real, inputs), reset)

  def together(earlier, later):
    # By selection: no number crosses into another sequence.
    forgets, spoilt, stretch = later
    kept = zeros_unless(~forgets[:, 0], earlier[2])
    return (
        earlier[0] | forgets, spoilt | earlier[1] & ~forgets,
        combine(kept, stretch),
    )

  forgets = jnp.zeros_like(bad[:, :1])
  first = (
      ~forgets, ~good_state[:, None],
      (jax.tree.map(jnp.zeros_like, way), zeros_unless(good_state, state)),
  )
  if reset is not None:
    forgets = reset.any(1, keepdims=True)
  spoilt = _spoilt(bad, jnp.zeros_like(good_state), reset)[:, -1:]
  _, spoilt, (_, state) = segments.combine_earlier(
      together, (forgets, spoilt, (way, left)), first
  )
  put_back = lambda u: jnp.where(_beside(spoilt[:, 0], u), jnp.nan, u)
  return jax.tree.map(put_back, state)


def leaving(segments: mesh.Segments | None, state: Any) -> Any:
  """Returns the state that leaves the last stretch, on every device."""
  if segments is None:
    return state
  return jax.tree.map(lambda u: segments.from_last(u), state)


def seen_last(reset: jax.Array | None, like: jax.Array):
  """What the state that leaves all of a stretch sees.

  Args:
    reset: Booleans `[B, T]` or `None`.
    like: An array `[B, T, ...]`.

  Returns:
    `Sight.last` as `[B, T]`, and `Sight.through` as `[B]`.
  """
  if reset is None:
    return jnp.ones_like(like, bool, shape=like.shape[:2]), jnp.ones_like(
        like, bool, shape=like.shape[:1]
    )
  sequence = jnp.cumsum(reset, axis=1, dtype=jnp.int32)
  return sequence == sequence[:, -1:], sequence[:, -1] == 0


def _partings(length):
  """Where pairs are parted; all is 0 or 1, `[levels, Q, Q]`.

  Returns:
    Which tokens `t` lie between the border and token i of a second half, itself
    included; which between token j of a first half and the border; and which
    pairs `[i, j]` are parted at that level.
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


def _to_border(g, size):
  """Sums of `g` `[..., Q, K]` between tokens and the border in their block.

  Blocks are of `2 size` tokens. Returns `[..., blocks, size, K]` of the second
  half, from the border on to each token, itself included; and of the first
  half, from behind each token to the border.
  """
  halves = g.reshape(
      *g.shape[:-2], g.shape[-2] // (2 * size), 2, size, g.shape[-1]
  )
  return up_to(halves[..., 1, :, :], -2), after(halves[..., 0, :, :], -2)


def _with_halves(sums, across, size):
  """From `[..., 2n, s, s]` of halves and `[..., n, s, s]` across to both."""
  sums = sums.reshape(*across.shape[:-2], 2, size, size)
  first, second = sums[..., 0, :, :], sums[..., 1, :, :]
  above = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
  below = jnp.concatenate([across, second], axis=-1)
  return jnp.concatenate([above, below], axis=-2)


def _sight(reset, length):
  """`Sight` of a chunk of `length` tokens with `reset` `[B, Q]` or `None`."""
  earlier = jnp.tri(length, dtype=bool)
  if reset is None:
    seen = jnp.ones((1, 1, length), bool)
    return Sight(earlier[None, None], seen, seen, seen[..., 0])
  sequence = jnp.cumsum(reset, axis=1, dtype=jnp.int32)[:, None]
  same = sequence[..., None] == sequence[..., None, :]
  last = sequence[..., -1:]
  return Sight(
      earlier & same, sequence == 0, sequence == last, last[..., 0] == 0
  )


def _spoilt(bad, bad_state, reset):
  """Where there is something bad since the start of the sequence `[B, T]`."""
  time = jnp.arange(bad.shape[1])
  latest = lambda flag, before: jnp.maximum(
      jax.lax.cummax(jnp.where(flag, time, -3), axis=1), before
  )
  trouble = latest(bad, jnp.where(bad_state, -1, -3)[:, None])
  return trouble >= (-2 if reset is None else latest(reset, -2))


def _all_finite(tree, axes):
  """Whether all numbers behind the first `axes` axes are finite."""
  flags = [
      jnp.isfinite(u).all(axis=tuple(range(axes, u.ndim)))
      for u in jax.tree.leaves(tree)
  ]
  return jnp.stack(flags).all(axis=0)


def _beside(flag, u):
  """`flag`, of the leading axes of `u`, with axes for the others."""
  return flag.reshape(flag.shape + (1,) * (u.ndim - flag.ndim))

