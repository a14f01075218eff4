"""Two implementations in plain JAX: a loop without temporaries, and a tree.

`sequential` is the CPU's: it reads each row of its inputs and writes each row
of `h` once, so `linear_scan` moves three arrays, and allocates nothing but its
result. `associative` runs anywhere and compiles to log(T) passes: ten to
fourteen times the traffic, the price of being parallel over time.
"""

import jax
from jax import lax
import jax.numpy as jnp
from rnnzoo.ops import exact
from rnnzoo.ops.linear_scan import gates

# XLA:CPU once widened the whole of a bfloat16 array to float32 for every row
# read from it or written to it in a loop: seconds instead of milliseconds at
# T = 4096. As integers its rows move alone; later versions need no such help,
# and it costs them a copy. (Measured: 0.10.2 needs it, 0.12 does not.)
_ROWS_AS_BITS = jax.__version_info__ < (0, 12)


def sequential(inputs, h0, reset, mask, *, gate, reverse, decay_after):
  """A loop over time inside a loop over the batch."""
  batch, time, _ = inputs[-1].shape
  out_dtype = inputs[-1].dtype
  at = _Rows(inputs, h0.dtype, reset, mask, gate, decay_after)
  # Where the last input can become `h` row by row, XLA copies it first only if
  # it must. With flags it may schedule a second read of a row behind its write,
  # and then copies the whole array at every step: a thousand times slower.
  in_place = reset is None and mask is None

  def one_sequence(b, state):
    last, h = state

    def one_step(i, state):
      carry, h = state
      t = time - 1 - i if reverse else i
      a_t, x_t, clear = at(b, t, h if in_place else None)
      if decay_after:
        # The carry is the state itself, and decays on its way into the next
        # step: so a row is read once, and may be written over.
        carry = jnp.where(i == 0, carry, decayed(i - 1, carry)) + x_t
      else:
        carry = clear(a_t * carry) + x_t
      h_t = _to_storage(carry.astype(out_dtype))
      return carry, lax.dynamic_update_slice(h, h_t, (b, t, 0))

    def decayed(i, carry):
      a_t, _, clear = at(b, time - 1 - i if reverse else i)
      return clear(a_t * carry)

    carry = lax.dynamic_slice(h0, (b, 0), (1, h0.shape[1]))[:, None]
    carry, h = lax.fori_loop(0, time, one_step, (carry, h))
    if decay_after:
      carry = decayed(time - 1, carry)
    return lax.dynamic_update_slice(last, carry[:, 0], (b, 0)), h

  buffer = at.last if in_place else jnp.zeros_like(at.last)
  last, h = lax.fori_loop(0, batch, one_sequence, (h0, buffer))
  return last, _from_storage(h, out_dtype)


def summary(inputs, reset, mask, *, gate, reverse, decay_after):
  """What `sequential` would come to, from zero, without writing its states."""
  batch, time, features = inputs[-1].shape
  dtype = exact.accumulation_dtype(*inputs)
  at = _Rows(inputs, dtype, reset, mask, gate, decay_after)

  def one_sequence(b, state):

    def one_step(i, state):
      product, carry = state
      a_t, x_t, clear = at(b, time - 1 - i if reverse else i)
      if decay_after:
        carry = clear(a_t * (carry + x_t))
      else:
        carry = clear(a_t * carry) + x_t
      return clear(a_t * product), carry

    zero = jnp.zeros_like(at.last, dtype, shape=(1, 1, features))
    rows = lax.fori_loop(0, time, one_step, (zero + 1, zero))
    return tuple(
        lax.dynamic_update_slice(u, row[:, 0], (b, 0))
        for u, row in zip(state, rows)
    )

  empty = jnp.zeros_like(at.last, dtype, shape=(batch, features))
  return lax.fori_loop(0, batch, one_sequence, (empty, empty))


class _Rows:
  """Reads and gates the inputs of one step of one sequence."""

  def __init__(self, inputs, dtype, reset, mask, gate, decay_after):
    self.dtypes = [u.dtype for u in inputs]
    *self.first, self.last = (_to_storage(u) for u in inputs)
    self.dtype, self.reset, self.mask, self.gate = dtype, reset, mask, gate
    self.decay_after = decay_after

  def __call__(self, b, t, last=None):
    """Returns `a_t`, `x_t` `[1, 1, D]` and a function that clears at a reset.

    Args:
      b: Which sequence.
      t: Which step.
      last: What to read in the place of the last input.
    """
    arrays = (*self.first, self.last if last is None else last)
    inputs = [self._row(u, d, b, t) for u, d in zip(arrays, self.dtypes)]
    start, clear = None, lambda u: u
    if self.reset is not None:
      start = lax.dynamic_slice(self.reset, (b, t), (1, 1))[..., None]
      clear = lambda u: jnp.where(start, 0, u)
    a_t, x_t = self.gate(start, *inputs)
    if self.mask is not None:
      present = lax.dynamic_slice(self.mask, (b, t), (1, 1))[..., None]
      a_t = jnp.where(present, a_t, 1)
      if not self.decay_after:  # There it is a cotangent, and handed on.
        x_t = jnp.where(present, x_t, 0)
    return a_t, x_t, clear

  def _row(self, u, dtype, b, t):
    # The same row again where `u` does not vary: a broadcast costs no memory.
    start = (b if u.shape[0] != 1 else 0, t if u.shape[1] != 1 else 0, 0)
    u_t = lax.dynamic_slice(u, start, (1, 1, u.shape[2]))
    return _from_storage(u_t, dtype).astype(self.dtype)


def _to_storage(u):
  if _ROWS_AS_BITS and u.dtype == jnp.bfloat16:
    return lax.bitcast_convert_type(u, jnp.uint16)
  return u


def _from_storage(u, dtype):
  return u if u.dtype == dtype else lax.bitcast_convert_type(u, dtype)


def associative(inputs, h0, reset, mask, *, gate, reverse, decay_after):
  """`jax.lax.associative_scan` over affine maps that may forget their input."""
  dtype, like = h0.dtype, inputs[-1]
  first, last = (-1, 0) if reverse else (0, -1)
  a, x = gates.evaluate(gate, inputs, dtype, reset, mask, decay_after)
  full, x = jnp.broadcast_to(a, like.shape), jnp.broadcast_to(x, like.shape)
  flags = None if reset is None else reset[..., None]
  clear = lambda flag, u: u if flag is None else jnp.where(flag, 0, u)
  at = lambda u, t: None if u is None else u[:, t]

  if decay_after:
    # The decay of step t acts on the way into step t + 1.
    a_in = _delay(full, jnp.ones_like(full[:, 0]), reverse)
    flags_in = None if flags is None else _delay(
        flags, jnp.zeros_like(flags[:, 0]), reverse)
  else:
    a_in, flags_in = full, flags

  # A reset step reads nothing: neither its decay nor, below, what it decays.
  a_in = clear(flags_in, a_in)
  # The initial state enters through the first input.
  x = x.at[:, first].add(a_in[:, first] * clear(at(flags_in, first), h0))

  def combine(left, right):
    a_l, x_l, *flag_l = left
    a_r, x_r, *flag_r = right
    flag = flag_r[0] if flag_r else None
    # Selected before it is used: 0 * NaN would reach values and gradients.
    combined = (a_r * clear(flag, a_l), a_r * clear(flag, x_l) + x_r)
    return combined + ((flag_l[0] | flag,) if flag_r else ())

  elements = (a_in, x)
  if flags_in is not None:
    elements += (jnp.broadcast_to(flags_in, like.shape),)
  _, h, *_ = lax.associative_scan(combine, elements, axis=1, reverse=reverse)
  carry = h[:, last]
  if decay_after:
    flag = at(flags, last)
    carry = clear(flag, full[:, last]) * clear(flag, carry)
  return carry, h.astype(like.dtype)


def _delay(u: jax.Array, edge: jax.Array, reverse: bool) -> jax.Array:
  """Moves `u` `[B, T, D]` one step along the direction of travel."""
  edge = edge[:, None]
  if reverse:
    return jnp.concatenate([u[:, 1:], edge], axis=1)
  return jnp.concatenate([edge, u[:, :-1]], axis=1)
