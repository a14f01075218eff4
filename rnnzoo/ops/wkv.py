"""The time mixing of RWKV-4: an average of values whose weights decay."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops import split_time
from rnnzoo.ops.linear_scan import api
from rnnzoo.ops.max_plus_scan import at_constant
from rnnzoo.ops.max_plus_scan import max_plus_scan

# The exponent before the first token, as published: finite, but very low.
_LOWEST = -1e30


class WKVState(NamedTuple):
  """The state after some tokens.

  Attributes:
    aa: The decayed sum of `exp(k) v`, times `exp(-pp)`, `[B, D]`.
    bb: The decayed sum of `exp(k)`, times `exp(-pp)`, `[B, D]`.
    pp: The exponent of both `[B, D]`.
  """

  aa: jax.Array
  bb: jax.Array
  pp: jax.Array


def wkv(
    k: jax.Array,
    v: jax.Array,
    time_decay: jax.Array,
    time_first: jax.Array,
    state: WKVState | None = None,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[WKVState, jax.Array]:
  r"""Averages the values of all tokens so far, separately in each channel.

  .. math::
      y_t = \frac{\sum_{i < t} e^{(t - 1 - i) w + k_i} v_i + e^{u + k_t} v_t}
                 {\sum_{i < t} e^{(t - 1 - i) w + k_i} + e^{u + k_t}},
      \quad w = -e^{d}

  with :math:`d` the `time_decay` and :math:`u` the `time_first`. It first
  computes the exponents `pp_t = max(pp_{t-1} + w, k_t)` (`max_plus_scan`). Both
  sums, divided by `exp(pp)`, are then linear recurrences with decays `exp(w +
  pp_{t-1} - pp_t)`. They run by `linear_scan`, with its platforms, meshes and
  gradients. Nothing overflows, however large the keys are.

  >>> import jax.numpy as jnp
  >>> k, v = jnp.zeros((1, 3, 1)), jnp.array([[[6.], [0.], [3.]]])
  >>> state, y = wkv(k, v, jnp.array([-jnp.inf]), jnp.zeros(1))
  >>> y[0, :, 0]
  Array([6., 3., 3.], dtype=float32)

  Args:
    k: Keys `[B, T, D]`.
    v: Values `[B, T, D]`.
    time_decay: `[D]`; a step multiplies by `exp(-exp(time_decay))`.
    time_first: Added to the key of the current token, `[D]`.
    state: The state after earlier tokens; `empty_wkv_state` if `None`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. Nothing before
      it reaches anything after it, not even a NaN.
    mask: Booleans `[B, T]`, `False` where a token is absent: its output is 0,
      and nothing decays.

  Returns:
    `(state, y)`: the state, in `promote_types(float32, ...)` of the operands,
    and averages `[B, T, D]`, in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  k, v, w, u, state, reset, mask = _checked(
      k, v, time_decay, time_first, state, reset, mask
  )
  out_dtype, v = v.dtype, v.astype(k.dtype)
  present = None if mask is None else mask[..., None]
  if present is not None:
    k, v = jnp.where(present, k, 0), jnp.where(present, v, 0)
  if not v.size:
    return state, v.astype(out_dtype)
  pp_last, before, pp = max_plus_scan(
      k, w, state.pp, initial=_LOWEST, reset=reset, mask=mask
  )
  fade, new = w + before - pp, k - pp
  if present is not None:
    fade, new = jnp.where(present, fade, 0), jnp.where(present, new, -jnp.inf)
  a, b = jnp.exp(fade), jnp.exp(new)
  aa_last, aa = api.linear_scan(a, b * v, state.aa, reset=reset)
  bb_last, bb = api.linear_scan(a, b, state.bb, reset=reset)

  def entering(sums, first):
    sums = split_time.shift(sums, first, later=True)
    return sums if reset is None else jnp.where(reset[..., None], 0, sums)

  y = average(
      WKVState(entering(aa, state.aa), entering(bb, state.bb), before), k, v, u
  )
  if present is not None:
    y = jnp.where(present, y, 0)
  unit = at_constant(pp_last, mask)
  state = WKVState(aa_last * unit, bb_last * unit, pp_last)
  return state, y.astype(out_dtype)


def wkv_step(
    k: jax.Array,
    v: jax.Array,
    time_decay: jax.Array,
    time_first: jax.Array,
    state: WKVState,
) -> tuple[WKVState, jax.Array]:
  """Runs `wkv` for one token, as published: `k` and `v` are `[B, D]`.

  Returns:
    `(state, y)`: the next state and the average `[B, D]`, both in the dtype of
    the operands.
  """
  w = -jnp.exp(time_decay)
  y = average(state, k, v, time_first)
  pp = jnp.maximum(w + state.pp, k)
  a, b = jnp.exp(w + state.pp - pp), jnp.exp(k - pp)
  return WKVState(a * state.aa + b * v, a * state.bb + b, pp), y


def average(state, k, v, u):
  """Averages the tokens before and this one, whose logit gets `u` more."""
  largest = jax.lax.stop_gradient(jnp.maximum(state.pp, u + k))  # It cancels.
  old, new = jnp.exp(state.pp - largest), jnp.exp(u + k - largest)
  return (old * state.aa + new * v) / (old * state.bb + new)


def empty_wkv_state(
    batch_size: int, features: int, dtype=jnp.float32
) -> WKVState:
  """Returns the state of no tokens: sums of 0, and an exponent of -1e30.

  >>> empty_wkv_state(2, 3).pp.shape
  (2, 3)
  """
  full = lambda u: jnp.full((batch_size, features), u, dtype)
  return WKVState(full(0), full(0), full(_LOWEST))


def _checked(k, v, time_decay, time_first, state, reset, mask):
  """Returns the operands, all but `v` in the dtype of states, or raises."""
  k, v, time_decay, time_first = (
      jnp.asarray(u) for u in (k, v, time_decay, time_first)
  )
  if k.ndim != 3 or v.shape != k.shape:
    raise ValueError(
        f'`k` and `v` must be [B, T, D], got shapes {k.shape} and {v.shape}.'
    )
  operands = dict(k=k, v=v, time_decay=time_decay, time_first=time_first)
  for name in 'time_decay', 'time_first':
    checking.has_shape(name, operands[name], 'D', k.shape[2:])
  checking.are_floating(**operands)
  dtype = exact.accumulation_dtype(*operands.values())
  empty = empty_wkv_state(k.shape[0], k.shape[2], dtype)
  state = checking.state_tuple(state, empty)
  reset, mask = checking.flags(reset, mask, k.shape)
  if mask is not None and reset is not None:
    reset = reset & mask
  w = -jnp.exp(time_decay.astype(dtype))
  return k.astype(dtype), v, w, time_first.astype(dtype), state, reset, mask
