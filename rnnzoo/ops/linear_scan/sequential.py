"""The linear recurrence as a loop without temporaries, for CPUs.

It reads each row of its inputs once and writes each row of `h` once, so it
moves three arrays and allocates only its result.
"""

import jax
from jax import lax
import jax.numpy as jnp
from rnnzoo.ops import exact
from rnnzoo.ops.linear_scan import backend

# Older versions of XLA:CPU widen a whole bfloat16 array to float32 for every
# row that a loop reads or writes: seconds instead of milliseconds at T = 4096.
# If the array holds integers, they move the row only. Later versions do not
# need this, and it costs them a copy. (0.10.2 needs it, 0.12 does not.)
_ROWS_AS_BITS = jax.__version_info__ < (0, 12)


def scan(inputs, h0, reset, mask, *, gate, reverse, decay_after):
  """Runs a loop over time inside a loop over the batch."""
  batch, time, _ = inputs[-1].shape
  out_dtype = inputs[-1].dtype
  at = _Rows(inputs, h0.dtype, reset, mask, gate, decay_after)
  # If `h` can replace the last input row by row, XLA copies that input only if
  # it must. With flags, XLA may schedule a second read of a row after its write
  # and then copies the whole array at every step, a thousand times slower.
  in_place = reset is None and mask is None

  def one_sequence(b, state):
    last, h = state

    def one_step(i, state):
      carry, h = state
      t = time - 1 - i if reverse else i
      a_t, x_t, clear = at(b, t, h if in_place else None)
      if decay_after:
        # The carry is the state itself, which decays when the next step reads
        # it. So each row is read once and can then be overwritten.
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
  """Returns the product of all decays, and the last state from zero."""
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
      last: The array to read instead of the last input, or None.
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
      if not self.decay_after:  # Otherwise `x_t` is a cotangent, and kept.
        x_t = jnp.where(present, x_t, 0)
    return a_t, x_t, clear

  def _row(self, u, dtype, b, t):
    # An axis of size 1 is read again and again: broadcasting costs no memory.
    start = (b if u.shape[0] != 1 else 0, t if u.shape[1] != 1 else 0, 0)
    u_t = lax.dynamic_slice(u, start, (1, 1, u.shape[2]))
    return _from_storage(u_t, dtype).astype(self.dtype)


def _to_storage(u):
  if _ROWS_AS_BITS and u.dtype == jnp.bfloat16:
    return lax.bitcast_convert_type(u, jnp.uint16)
  return u


def _from_storage(u, dtype):
  return u if u.dtype == dtype else lax.bitcast_convert_type(u, dtype)


BACKEND = backend.Backend(scan, summary, gates_first=True)
