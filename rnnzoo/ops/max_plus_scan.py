"""A running maximum that decays, for sums of exponentials that may overflow."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import split_time

# The layouts of `x`, `w`, `m0`, `reset` and `mask` (see `rnnzoo/mesh.py`).
_LAYOUTS = ('btd', 'btd', 'bd', 'bt', 'bt')


def max_plus_scan(
    x: jax.Array,
    w: jax.Array | float = 0.0,
    m0: jax.Array | None = None,
    *,
    initial: float = -jnp.inf,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes `m_t = max(m_{t-1} + w, x_t)` along axis 1.

  With it, `sum_j exp(x_j + (t - j) w)` is `exp(m_t)` times a sum of terms that
  are at most 1. The product does not depend on the value of `m_t`, so gradients
  treat it as a constant. Only two values have a gradient, because a sum enters
  or leaves with them: `m0` at the first step, and `m_last`; see `at_constant`.

  >>> import jax.numpy as jnp
  >>> x = jnp.array([[3., 1., 0., 2.]])[..., None]
  >>> m_last, before, m = max_plus_scan(x, -0.5)
  >>> before[0, :, 0]
  Array([-inf,  3. ,  2.5,  2. ], dtype=float32)
  >>> m[0, :, 0]
  Array([3. , 2.5, 2. , 2. ], dtype=float32)

  Args:
    x: `[B, T, D]`, real.
    w: Added at every step, broadcastable to `[1, 1, D]`.
    m0: The maximum before the first step `[B, D]`; `initial` if `None`.
    initial: The maximum after a reset, before the first token.
    reset: Booleans `[B, T]`, `True` where a new sequence starts.
    mask: Booleans `[B, T]`, `False` where the maximum does not change.

  Returns:
    `(m_last, before, m)`: the last maximum `[B, D]`, which is `m0` if no step
    is present; the maximum that enters each step and the one that leaves it,
    both `[B, T, D]`; all in the dtype of `x`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  x = jnp.asarray(x)
  if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f'`x` must be real [B, T, D], got {x.dtype} {x.shape}.')
  w = jnp.asarray(w, x.dtype)
  w = checking.broadcastable('w', w, (1, 1, x.shape[2]))
  if m0 is None:
    m0 = jnp.full_like(x, initial, shape=(x.shape[0], x.shape[2]))
  m0 = checking.state(m0, x.shape, x.dtype)
  reset, mask = checking.flags(reset, mask, x.shape)
  if mask is not None and reset is not None:
    reset = reset & mask
  if not x.size:
    return m0, x, x
  constants = (lax.stop_gradient(u) for u in (x, w, m0))

  def local(x, w, m0, reset, mask, *, segments):
    last, m = _scan(x, w, m0, reset, mask, initial)
    if segments is None:
      return last, m
    # Only the first segment is right so far. The others now compute how they
    # change the maximum that enters them.
    nothing = jnp.full_like(m0, -jnp.inf)
    last, _ = _scan(x, w, nothing, reset, mask, initial)
    steps = x.shape[1] if mask is None else mask.sum(1, keepdims=True)
    forgets = jnp.zeros_like(last[:, :1], bool)
    first = ~forgets, jnp.zeros_like(m0), m0
    if reset is not None:
      forgets = reset.any(1, keepdims=True)
    own = forgets, jnp.broadcast_to(steps * w[0], m0.shape), last
    entering = segments.combine_earlier(_combine, own, first)[2]
    last, m = _scan(x, w, entering, reset, mask, initial)
    return segments.from_last(last), m

  operands = mesh.align(x, (*constants, reset, mask), _LAYOUTS)
  last, m = mesh.run_aligned(local, x, operands, _LAYOUTS, ('bd', 'btd'))
  last = _with_slope(last, _largest(x, w, m0, reset, mask))
  before = split_time.shift(m, m0, later=True)
  if mask is not None:
    first = mask & (jnp.cumsum(mask, axis=1) == 1)
    before = jnp.where(first[..., None], m0[:, None], before)
  if reset is not None:
    before = jnp.where(reset[..., None], initial, before)
  return last, before, m


def at_constant(m_last: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Returns a factor for the last sum: it is 1, but has a gradient.

  The last sum has a factor `exp(-m_last)`, and was computed with `m_last` as a
  constant. This factor adds the gradient of `m_last`.

  Args:
    m_last: From `max_plus_scan`, `[B, D]`.
    mask: The mask of that scan. If no step is present, the sum did not change.

  Returns:
    `[B, D]`.
  """
  slope = lax.stop_gradient(m_last) - m_last
  there = jnp.isfinite(m_last)
  if mask is not None:
    there &= mask.any(1)[:, None]
  return jnp.exp(jnp.where(there, slope, 0))


def _with_slope(value, like):
  """Returns `value` with the gradient of `like`; both are almost equal."""
  slope = like - lax.stop_gradient(like)
  return value + jnp.where(jnp.isfinite(value), slope, 0)


def _largest(x, w, m0, reset, mask):
  """Computes `m_last` without a scan: the maximum of all decayed inputs."""
  alive = jnp.ones(x.shape[:2], bool) if mask is None else mask
  age = jnp.cumsum(alive[:, ::-1], axis=1)[:, ::-1]
  oldest = m0 + age[:, :1] * w[0]
  age = jnp.where(alive, age - 1, 0)
  if reset is not None:
    starts = jnp.cumsum(reset, axis=1)
    alive = alive & (starts == starts[:, -1:])
    oldest = jnp.where(reset.any(1)[:, None], -jnp.inf, oldest)
  entered = jnp.where(alive[..., None], x + age[..., None] * w, -jnp.inf)
  return jnp.maximum(entered.max(1), oldest)


def _combine(earlier, later):
  """Merges two adjacent segments: `(forgets, added to a maximum, maximum)`."""
  forgets, added, last = later
  before = jnp.where(forgets, -jnp.inf, earlier[2])
  return (
      earlier[0] | forgets,
      earlier[1] + added,
      jnp.maximum(before + added, last),
  )


def _scan(x, w, m0, reset, mask, initial):
  """Runs the form for the platform of lowering, as in `linear_scan`."""
  return lax.platform_dependent(
      x, w, m0, reset, mask,
      cpu=functools.partial(_sequential, initial=initial),
      default=functools.partial(_associative, initial=initial),
  )


def _sequential(x, w, m0, reset, mask, initial):
  """Runs a loop that reads and writes each row once."""
  row = lambda u, t: lax.dynamic_slice_in_dim(u, t, 1, axis=1)

  def step(t, state):
    before, m = state
    entering = before
    if reset is not None:
      entering = jnp.where(row(reset, t)[..., None], initial, before)
    new = jnp.maximum(entering + w, row(x, t))
    if mask is not None:
      new = jnp.where(row(mask, t)[..., None], new, before)
    return new, lax.dynamic_update_slice_in_dim(m, new, t, axis=1)

  state = m0[:, None], jnp.zeros_like(x)
  last, m = lax.fori_loop(0, x.shape[1], step, state)
  return last[:, 0], m


def _associative(x, w, m0, reset, mask, initial):
  """Runs `jax.lax.associative_scan` over segments, see `_combine`."""
  added, forgets = jnp.broadcast_to(w, x.shape), jnp.zeros_like(x, bool)
  if reset is not None:
    start = reset[..., None]
    x = jnp.where(start, jnp.maximum(initial + w, x), x)
    forgets = jnp.broadcast_to(start, x.shape)
  if mask is not None:
    present = mask[..., None]
    added = jnp.where(present, added, 0)
    x = jnp.where(present, x, -jnp.inf)
  forgotten = jnp.where(forgets[:, 0], -jnp.inf, m0)
  x = x.at[:, 0].max(forgotten + added[:, 0])
  _, _, m = lax.associative_scan(_combine, (forgets, added, x), axis=1)
  return m[:, -1], m
