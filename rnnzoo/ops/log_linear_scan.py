"""The linear recurrence on logarithms, for comparison with log-space papers.

The published minGRU and minLSTM run `exp(log_linear_scan(log a, log x))`. The
direct form `ops.linear_scan` gives the same numbers faster and with more
digits: log space is a way to write gates, not a better scan. This function is
for tests, and for models whose states leave the range of floating point.
"""

import jax
from jax import lax
import jax.numpy as jnp
from rnnzoo.ops import checking
from rnnzoo.ops import exact


def log_linear_scan(
    log_a: jax.Array,
    log_x: jax.Array,
    log_h0: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Computes `log h_t` where `h_t = a_t * h_{t-1} + x_t`, all positive.

  It is an associative scan with `logaddexp`. It subtracts no cumulative sums,
  so the error does not grow with T as in the form of Heinsen (2023).

  >>> import jax.numpy as jnp
  >>> log_half = jnp.full((1, 3, 1), jnp.log(.5))
  >>> _, log_h = log_linear_scan(log_half, jnp.zeros((1, 3, 1)))
  >>> [round(float(h), 3) for h in jnp.exp(log_h)[0, :, 0]]
  [1.0, 1.5, 1.75]

  Args:
    log_a: Logarithms of the decays, broadcastable to `[B, T, D]`.
    log_x: Logarithms of the inputs `[B, T, D]`; `-inf` is an input of zero.
    log_h0: Logarithm of the state before the first step `[B, D]`; `-inf` if
      `None`, which is a state of zero.

  Returns:
    `(log_h_last, log_h)`: `[B, D]` in `promote_types(float32, ...)`, and
    `[B, T, D]` in the dtype of `log_x`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  log_a, log_x = jnp.asarray(log_a), jnp.asarray(log_x)
  checking.has_axes('log_x', log_x, 'BTD')
  checking.are_floating(log_a=log_a, log_x=log_x)
  log_a = checking.broadcastable('log_a', log_a, log_x.shape, like='log_x')
  state_shape = (log_x.shape[0], log_x.shape[2])
  if log_h0 is not None:
    checking.has_shape('log_h0', log_h0, 'BD', state_shape)
  dtype = exact.accumulation_dtype(log_a, log_x)
  log_a = jnp.broadcast_to(log_a, log_x.shape).astype(dtype)
  log_h = log_x.astype(dtype)
  if log_h0 is None:
    log_h0 = jnp.full(state_shape, -jnp.inf, dtype)
  else:
    log_h0 = jnp.asarray(log_h0, dtype)
  if log_x.size == 0:
    return log_h0, log_x
  log_h = log_h.at[:, 0].set(_logaddexp(log_h[:, 0], log_a[:, 0] + log_h0))
  combine = lambda l, r: (l[0] + r[0], _logaddexp(r[0] + l[1], r[1]))
  _, log_h = lax.associative_scan(combine, (log_a, log_h), axis=1)
  return log_h[:, -1], log_h.astype(log_x.dtype)


def _logaddexp(x, y):
  """`jnp.logaddexp`, but its gradient where both are `-inf` is 0, not NaN."""
  both = (x == -jnp.inf) & (y == -jnp.inf)
  x, y = (jnp.where(both, 0, u) for u in (x, y))
  return jnp.where(both, -jnp.inf, jnp.logaddexp(x, y))
