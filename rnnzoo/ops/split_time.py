"""Linear recurrences whose time is split over devices, a segment for each.

`rnnzoo/mesh.py` exchanges the segments; here is what linear recurrences make of
them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from rnnzoo import mesh


def entering_state(
    segments: mesh.Segments,
    product: jax.Array,
    last: jax.Array,
    reset: jax.Array | None,
    h0: jax.Array,
    reverse: bool = False,
) -> jax.Array:
  """Returns the state of a linear recurrence that enters this segment.

  Args:
    segments: The segments of time.
    product: The product of all decays of this segment `[B, ...]`, 0 if it has a
      reset.
    last: The last state of this segment if it starts from zero `[B, ...]`.
    reset: Booleans `[B, T]` or None.
    h0: The state that enters the first segment `[B, ...]`.
    reverse: Whether the first segment is that of the last device.
  """

  def combine(earlier, later):
    forgets, product, last = later
    # By selection: 0 * NaN would cross into another sequence.
    kept = [jnp.where(forgets, 0, u) for u in earlier[1:]]
    return earlier[0] | forgets, product * kept[0], product * kept[1] + last

  forgets = _has_reset(last, reset)
  first = jnp.ones_like(forgets), jnp.zeros_like(h0), h0
  own = forgets, product, last
  return segments.combine_earlier(combine, own, first, reverse)[2]


def entering_state_by_powers(
    segments: mesh.Segments,
    advance: Callable[[int, jax.Array], jax.Array],
    last: jax.Array,
    time: int,
    reset: jax.Array | None,
    mask: jax.Array | None,
    h0: jax.Array,
) -> jax.Array:
  """`entering_state` where every step applies the same matrix to the state.

  Args:
    segments: The segments of time.
    advance: `advance(i, h)` is the state `h` `2^i` steps later.
    last: The last state of this segment if it starts from zero `[B, ...]`.
    time: The number of tokens in this segment.
    reset: Booleans `[B, T]` or None.
    mask: Booleans `[B, T]` or None, `False` where a step is absent.
    h0: The state that enters the first segment `[B, ...]`.
  """
  axes = (1,) * (last.ndim - 1)
  steps = jnp.full_like(last, time, jnp.int32, shape=(last.shape[0], *axes))
  if mask is not None:
    reset = None if reset is None else reset & mask
    steps = mask.sum(1, dtype=jnp.int32).reshape(steps.shape)

  def combine(earlier, later):
    forgets, steps, last = later
    h = jnp.where(forgets, 0, earlier[2])
    for i in range((segments.size * time).bit_length()):
      h = jnp.where((steps >> i & 1) > 0, advance(i, h), h)
    return earlier[0] | forgets, earlier[1] + steps, h + last

  forgets = _has_reset(last, reset)
  first = jnp.ones_like(forgets), jnp.zeros_like(steps), h0
  return segments.combine_earlier(combine, (forgets, steps, last), first)[2]


def shift(
    u: jax.Array,
    edge: jax.Array,
    *,
    later: bool,
    layout: str = 'btd',
    like: jax.Array | None = None,
) -> jax.Array:
  """Returns `u_{t-1}` if `later`, or else `u_{t+1}`, where time may be split.

  Args:
    u: `[B, T, D]`, or an array of another layout.
    edge: `[B, D]`, `u` without its time, which fills the gap at the first or at
      the last step.
    later: Whether values move to later steps.
    layout: The layout of `u`, see `rnnzoo/mesh.py`.
    like: `[B, T, D]`, which decides how to split; `u` if `None`.
  """
  like = u if like is None else like

  def local(u, edge, *, segments):
    if segments is not None:
      own = u[:, -1 if later else 0]
      edge = segments.from_neighbor(own, edge, not later)
    if later:
      return (jnp.concatenate([edge[:, None], u[:, :-1]], axis=1),)
    return (jnp.concatenate([u[:, 1:], edge[:, None]], axis=1),)

  if not mesh.splits_time(like):
    return local(u, edge, segments=None)[0]
  layouts = layout, layout.replace('t', '')
  return mesh.run_per_device(local, like, (u, edge), layouts, (layout,))[0]


def _has_reset(last, reset):
  """Whether each row of a segment has a reset, with the axes of `last`."""
  shape = last.shape[:1] + (1,) * (last.ndim - 1)
  if reset is None:
    return jnp.zeros_like(last, bool, shape=shape)
  return reset.any(axis=1).reshape(shape)
