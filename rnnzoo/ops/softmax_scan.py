"""Attention with the same query for all tokens, as a recurrence (Aaren)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops.linear_scan import api
from rnnzoo.ops.max_plus_scan import at_constant
from rnnzoo.ops.max_plus_scan import max_plus_scan


class SoftmaxState(NamedTuple):
  """The state after some tokens; `w / u` is their average.

  Attributes:
    m: The largest score `[B, H]`.
    u: The sum of `exp(s - m)` `[B, H]`.
    w: The sum of `exp(s - m) v` `[B, H, D]`.
  """

  m: jax.Array
  u: jax.Array
  w: jax.Array

  @property
  def log_u(self) -> jax.Array:
    """Logarithm of the sum of `exp(s)` `[B, H]`."""
    return self.m + jnp.log(self.u)


def softmax_scan(
    s: jax.Array,
    v: jax.Array,
    state: SoftmaxState | None = None,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[SoftmaxState, jax.Array]:
  r"""Averages values with softmax weights over all tokens so far.

  .. math::
      o_t = \frac{\sum_{j \le t} e^{s_j} v_j}{\sum_{j \le t} e^{s_j}}

  It first computes the running maximum `m`. Both sums, divided by `exp(m)`, are
  then linear recurrences with decays `exp(m_{t-1} - m_t)`. They run by
  `linear_scan`, with its platforms, meshes and gradients.

  >>> import jax.numpy as jnp
  >>> s = jnp.log(jnp.array([1., 3., 4.])).reshape(1, 3, 1)
  >>> v = jnp.array([1., 5., 0.]).reshape(1, 3, 1, 1)
  >>> state, o = softmax_scan(s, v)
  >>> o[0, :, 0, 0].round(3)
  Array([1., 4., 2.], dtype=float32)

  Args:
    s: Scores `[B, T, H]`.
    v: Values `[B, T, H, D]`.
    state: The state after earlier tokens; `empty_softmax_state` if `None`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. Nothing before
      it reaches anything after it, not even a NaN.
    mask: Booleans `[B, T]`, `False` where a token is absent: its output is 0.

  Returns:
    `(state, o)`: the state, in `promote_types(float32, ...)` of the operands,
    and averages `[B, T, H, D]`, in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  s, v, state, reset, mask = _checked(s, v, state, reset, mask)
  out_dtype, v = v.dtype, v.astype(s.dtype)
  if mask is not None:
    s = jnp.where(mask[..., None], s, 0)
    v = jnp.where(mask[..., None, None], v, 0)
  if not v.size:
    return state, v.astype(out_dtype)
  m_last, before, m = max_plus_scan(s, 0.0, state.m, reset=reset, mask=mask)
  if mask is not None:  # Before the first token that is present, both are -inf.
    before, m = (jnp.where(mask[..., None], u, 0) for u in (before, m))
  fade, new = before - m, s - m
  if mask is not None:
    new = jnp.where(mask[..., None], new, -jnp.inf)
  a, b = jnp.exp(fade), jnp.exp(new)
  u_last, u = api.linear_scan(a, b, state.u, reset=reset)
  flat = lambda w: w.reshape(*w.shape[:-2], w.shape[-2] * w.shape[-1])
  w_last, w = api.linear_scan(
      flat(jnp.broadcast_to(a[..., None], v.shape)),
      flat(b[..., None] * v),
      flat(state.w),
      reset=reset,
  )
  if mask is not None:
    u = jnp.where(mask[..., None], u, 1)
  o = w.reshape(v.shape) / u[..., None]
  if mask is not None:
    o = jnp.where(mask[..., None, None], o, 0)
  unit = at_constant(m_last, mask)
  w_last = w_last.reshape(state.w.shape) * unit[..., None]
  return SoftmaxState(m_last, u_last * unit, w_last), o.astype(out_dtype)


def softmax_last(
    s: jax.Array,
    v: jax.Array,
    state: SoftmaxState | None = None,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[SoftmaxState, jax.Array]:
  """Computes the last average of `softmax_scan` only, without a scan.

  >>> import jax.numpy as jnp
  >>> s = jnp.log(jnp.array([1., 3., 4.])).reshape(1, 3, 1)
  >>> v = jnp.array([1., 5., 0.]).reshape(1, 3, 1, 1)
  >>> state, o = softmax_last(s, v)
  >>> o[0, 0].round(3)
  Array([2.], dtype=float32)

  Args:
    s: Scores `[B, T, H]`.
    v: Values `[B, T, H, D]`.
    state: As in `softmax_scan`.
    reset: As in `softmax_scan`.
    mask: As in `softmax_scan`.

  Returns:
    `(state, o)`: the state, and the average `[B, H, D]` over the last sequence,
    or 0 if it has no token.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  s, v, state, reset, mask = _checked(s, v, state, reset, mask)
  out_dtype = v.dtype
  alive = jnp.ones(s.shape[:2], bool) if mask is None else mask
  m0, u0, w0 = state
  if reset is not None:
    starts = jnp.cumsum(reset, axis=1)
    alive = alive & (starts == starts[:, -1:])
    over = reset.any(1)[:, None]
    m0, u0 = jnp.where(over, -jnp.inf, m0), jnp.where(over, 0, u0)
    w0 = jnp.where(over[..., None], 0, w0)
  s = jnp.where(alive[..., None], s, -jnp.inf)
  v = jnp.where(alive[..., None, None], v, 0)
  m = jnp.maximum(m0, s.max(1, initial=-jnp.inf))
  none = m == -jnp.inf
  shift = jnp.where(none, 0, m)
  a, b = jnp.exp(m0 - shift), jnp.exp(s - shift[:, None])
  u = a * u0 + b.sum(1)
  w = a[..., None] * w0 + exact.einsum(
      'bth,bthd->bhd', b, v.astype(s.dtype)
  )
  o = w / jnp.where(none, 1, u)[..., None]
  return SoftmaxState(m, u, w), o.astype(out_dtype)


def empty_softmax_state(
    batch_size: int, num_heads: int, features: int, dtype=jnp.float32
) -> SoftmaxState:
  """Returns the state of no tokens: sums of 0, and a maximum of `-inf`.

  >>> empty_softmax_state(2, 4, 3).w.shape
  (2, 4, 3)
  """
  return SoftmaxState(
      m=jnp.full((batch_size, num_heads), -jnp.inf, dtype),
      u=jnp.zeros((batch_size, num_heads), dtype),
      w=jnp.zeros((batch_size, num_heads, features), dtype),
  )


def _checked(s, v, state, reset, mask):
  """Returns the operands, all but `v` in the dtype of states, or raises."""
  s, v = jnp.asarray(s), jnp.asarray(v)
  if s.ndim != 3 or v.ndim != 4 or v.shape[:3] != s.shape:
    raise ValueError(
        '`s` and `v` must be [B, T, H] and [B, T, H, D], got shapes '
        f'{s.shape} and {v.shape}.'
    )
  checking.are_floating(s=s, v=v)
  dtype = exact.accumulation_dtype(s, v)
  empty = empty_softmax_state(s.shape[0], v.shape[2], v.shape[3], dtype)
  state = checking.state_tuple(state, empty)
  reset, mask = checking.flags(reset, mask, s.shape)
  if mask is not None and reset is not None:
    reset = reset & mask
  return s.astype(dtype), v, state, reset, mask
