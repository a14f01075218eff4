"""Recurrences whose state is a matrix, in chunks of tokens.

    S_t = diag(e^{g_t}) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T    [K, V]
    y_t = S_t^T q_t

Inside a chunk of `Q` tokens, everything is a product of matrices (`decays.py`
has the decays in it). One scan computes the states between chunks. The backward
pass recomputes each chunk from the state that entered it. So memory grows as
`T (K + V) + (T / Q) K V`, never as `T K V` or `T^2`.

Axes: `B` batch, `T` time, `H` heads, `K` features of a key, `V` of a value. An
array of one chunk is `[B, H, Q, ...]`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo import mesh


class Visibility(NamedTuple):
  """Which tokens and states of a chunk belong to the same sequence.

  Attributes:
    pairs: Whether token i sees token j, `j <= i`: `[B, 1, Q, Q]`.
    state: Whether token i sees the state that enters the chunk: `[B, 1, Q]`.
    last: Whether the state that leaves the chunk sees token j: `[B, 1, Q]`.
    through: Whether the state that leaves sees the state that enters:
      `[B, 1]`.
  """

  pairs: jax.Array
  state: jax.Array
  last: jax.Array
  through: jax.Array


def scan_chunks(
    body: Callable[[Any, Any, Visibility], tuple[Any, jax.Array | None]],
    state: Any,
    inputs: Any,
    reset: jax.Array | None,
    mask: jax.Array | None,
    chunk_size: int,
) -> tuple[Any, Any]:
  """Runs a recurrence over time, one chunk after the other.

  All inputs of absent steps, and of the padding of the last chunk, are zeros.
  So their log decays are 0, which keeps the state, and their keys are 0, which
  adds nothing.

  Products of matrices would spread a NaN or an infinity to other sequences. So
  a token that has one is read as zeros, and then all outputs of its sequence
  from this token on become NaN. Log decays of minus infinity are allowed, see
  `decays.finite`.

  Args:
    body: `body(state, inputs, visible)`, with inputs `[B, H, Q, ...]`, returns
      the next state and outputs `[B, H, Q, V]`, or `None` for no outputs.
    state: A tree of arrays `[B, ...]`, the state before the first step.
    inputs: A tree of arrays `[B, T, H, ...]`, T >= 0.
    reset: Booleans `[B, T]`, `True` where a new sequence starts, or `None`.
    mask: Booleans `[B, T]`, `False` where a step is absent, or `None`.
    chunk_size: `Q`, a power of two; shorter sequences have a smaller chunk.

  Returns:
    `(state, y)`: the state after the last step, and outputs `[B, T, H, V]` in
    the dtype that `body` gives, 0 where absent, or `None` if it gives `None`.
  """
  leaves = jax.tree.leaves(inputs)
  batch, time = leaves[0].shape[:2]
  length = chunk_length(time, chunk_size)
  count = -(-time // length)

  if not time:
    one = jax.tree.map(  # A chunk of one token.
        lambda u: jnp.zeros_like(
            u, shape=(batch, u.shape[2], 1, *u.shape[3:])
        ),
        inputs,
    )
    one, like = _as_varying(inputs, one, state)
    _, y = jax.eval_shape(lambda: body(like, one, _visibility(None, 1)))
    return state, jax.tree.map(
        lambda u: jnp.zeros_like(
            leaves[0], u.dtype, shape=(batch, 0, u.shape[1], u.shape[3])
        ),
        y,
    )

  if mask is not None:
    reset = None if reset is None else reset & mask
  # Otherwise XLA searches constant zeros for NaNs at compile time, for seconds.
  state = jax.lax.optimization_barrier(state)
  finite = _all_finite(inputs, 2)
  good_state = _all_finite(state, 1)
  bad = ~finite if mask is None else ~finite & mask
  is_nan = _after_bad(bad, ~good_state, reset)
  state = jax.tree.map(
      lambda u: jnp.where(_with_axes(good_state, u), u, 0), state
  )
  real = finite if mask is None else finite & mask

  def one_chunk(state, inputs, flags):
    real, is_nan, reset, mask = flags
    heads_first = lambda u: jnp.swapaxes(u, 1, 2)
    inputs = jax.tree.map(
        lambda u: heads_first(jnp.where(_with_axes(real, u), u, 0)), inputs
    )
    state, y = body(state, inputs, _visibility(reset, length))
    if y is not None:
      y = jnp.where(is_nan[..., None, None], jnp.nan, heads_first(y))
      if mask is not None:
        y = jnp.where(mask[..., None, None], y, 0)
    return state, y

  fill = lambda u: jnp.pad(
      u, ((0, 0), (0, count * length - time)) + ((0, 0),) * (u.ndim - 2)
  )
  chunks = jax.tree.map(fill, (inputs, (real, is_nan, reset, mask)))
  first = jax.tree.map(lambda u: u[:, :length], chunks)
  # Arrays that `body` closes over have gradients, too.
  one_chunk, constants = jax.closure_convert(one_chunk, state, *first)
  leaves, structure = jax.tree.flatten((state, *chunks, tuple(constants)))
  state, inputs, flags, constants = structure.unflatten(
      mesh.same_varying(*leaves)
  )
  state, y = _loop(one_chunk, length, state, inputs, flags, constants)
  put_back = lambda u: jnp.where(_with_axes(is_nan[:, -1], u), jnp.nan, u)
  return jax.tree.map(put_back, state), None if y is None else y[:, :time]


@lambda fn: jax.custom_vjp(fn, nondiff_argnums=(0, 1))
def _loop(one_chunk, length, state, inputs, flags, constants):
  """Runs `one_chunk` over pieces of `length` of inputs and flags.

  The gradient is written by hand to save memory. It reads the inputs, and
  writes their gradients, in place, so no array as long as time exists twice.
  """
  return _scan(one_chunk, length, state, inputs, flags, constants)[0]


def _forward(one_chunk, length, state, inputs, flags, constants):
  results, before = _scan(
      one_chunk, length, state, inputs, flags, constants, keep=True
  )
  return results, (before, inputs, flags, constants)


def _scan(one_chunk, length, state, inputs, flags, constants, keep=False):
  """Returns the results and, if `keep`, the state that enters each chunk."""
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
  """Returns a function that cuts piece i out of arrays `[B, T, ...]`."""
  cut = lambda u, i: jax.lax.dynamic_slice_in_dim(u, i * length, length, 1)
  return lambda i: jax.tree.map(lambda u: cut(u, i), tree)


def _put(tree, pieces, start):
  """Writes pieces into arrays `[B, T, ...]`, from `start` on."""
  put = jax.lax.dynamic_update_slice_in_dim
  return jax.tree.map(lambda u, v: put(u, v, start, 1), tree, pieces)


def _as_varying(like, *trees):
  """Marks a loop carry as varying like `like`, inside a `jax.shard_map`."""
  leaves, structure = jax.tree.flatten(trees)
  some = jax.tree.leaves(like)[0]
  return structure.unflatten(mesh.same_varying(*leaves, some)[:-1])


def chunk_length(time: int, chunk_size: int) -> int:
  """Returns the tokens of a chunk: `chunk_size`, or fewer if `time` is less.

  Raises:
    ValueError: If `chunk_size` is not a power of two.
  """
  if chunk_size < 1 or chunk_size & (chunk_size - 1):
    raise ValueError(
        f'`chunk_size` must be a power of two, got {chunk_size}.'
    )
  return min(chunk_size, 1 << max(time - 1, 0).bit_length())


def entering_state(
    segments: mesh.Segments | None,
    summary: Callable[[Any, jax.Array | None], tuple[Any, Any]],
    combine: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    inputs: Any,
    reset: jax.Array | None,
    mask: jax.Array | None,
) -> Any:
  """Returns the state that enters the segment of time of this device.

  Every device computes a summary of its own tokens. The devices exchange these.

  Args:
    segments: From `mesh.run_per_device`. If `None`, time is not split, and
      `state` is returned.
    summary: `summary(inputs, reset)`, with zeros in the inputs as in
      `scan_chunks`, returns `(change, state)`: how the segment changes a state
      that passes through it, as arrays `[B, ...]`, and the state that its
      tokens leave if the state that enters is zero.
    combine: `combine(earlier, later)` merges the summaries of two adjacent
      segments. If `earlier` is zeros, the state must be that of `later`.
    state: The state before the first segment, as for `scan_chunks`.
    inputs: The inputs of this segment, `[B, T, H, ...]`.
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
      lambda u: jnp.where(_with_axes(flag, u), u, 0), tree
  )
  change, left = summary(zeros_unless(real, inputs), reset)

  def together(earlier, later):
    # By selection: no number crosses into another sequence.
    forgets, is_nan, own = later
    kept = zeros_unless(~forgets[:, 0], earlier[2])
    return (
        earlier[0] | forgets, is_nan | earlier[1] & ~forgets,
        combine(kept, own),
    )

  forgets = jnp.zeros_like(bad[:, :1])
  first = (
      ~forgets, ~good_state[:, None],
      (jax.tree.map(jnp.zeros_like, change), zeros_unless(good_state, state)),
  )
  if reset is not None:
    forgets = reset.any(1, keepdims=True)
  is_nan = _after_bad(bad, jnp.zeros_like(good_state), reset)[:, -1:]
  _, is_nan, (_, state) = segments.combine_earlier(
      together, (forgets, is_nan, (change, left)), first
  )
  put_back = lambda u: jnp.where(_with_axes(is_nan[:, 0], u), jnp.nan, u)
  return jax.tree.map(put_back, state)


def leaving_state(segments: mesh.Segments | None, state: Any) -> Any:
  """Returns, on every device, the state that leaves the last segment."""
  if segments is None:
    return state
  return jax.tree.map(segments.from_last, state)


def visible_at_end(
    reset: jax.Array | None, like: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns what the state that leaves a whole segment sees.

  Args:
    reset: Booleans `[B, T]` or `None`.
    like: An array `[B, T, ...]`.

  Returns:
    `Visibility.last` as `[B, T]`, and `Visibility.through` as `[B]`.
  """
  if reset is None:
    return jnp.ones_like(like, bool, shape=like.shape[:2]), jnp.ones_like(
        like, bool, shape=like.shape[:1]
    )
  sequence = jnp.cumsum(reset, axis=1, dtype=jnp.int32)
  return sequence == sequence[:, -1:], sequence[:, -1] == 0


def _visibility(reset, length):
  """The `Visibility` of a chunk with `reset` `[B, Q]` or `None`."""
  earlier = jnp.tri(length, dtype=bool)
  if reset is None:
    always = jnp.ones((1, 1, length), bool)
    return Visibility(earlier[None, None], always, always, always[..., 0])
  sequence = jnp.cumsum(reset, axis=1, dtype=jnp.int32)[:, None]
  same = sequence[..., None] == sequence[..., None, :]
  last = sequence[..., -1:]
  return Visibility(
      earlier & same, sequence == 0, sequence == last, last[..., 0] == 0
  )


def _after_bad(bad, bad_state, reset):
  """Whether a token, or an earlier one of its sequence, is bad: `[B, T]`."""
  time = jnp.arange(bad.shape[1])
  latest = lambda flag, before: jnp.maximum(
      jax.lax.cummax(jnp.where(flag, time, -3), axis=1), before
  )
  trouble = latest(bad, jnp.where(bad_state, -1, -3)[:, None])
  return trouble >= (-2 if reset is None else latest(reset, -2))


def _all_finite(tree, axes):
  """Whether all numbers are finite, for each index of the first `axes` axes."""
  flags = [
      jnp.isfinite(u).all(axis=tuple(range(axes, u.ndim)))
      for u in jax.tree.leaves(tree)
  ]
  return jnp.stack(flags).all(axis=0)


def _with_axes(flag, u):
  """Appends axes to `flag`, which has the leading axes of `u`."""
  return flag.reshape(flag.shape + (1,) * (u.ndim - flag.ndim))

