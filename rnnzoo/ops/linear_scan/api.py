"""`linear_scan`: the first-order recurrence under every diagonal layer."""

import jax
import jax.numpy as jnp
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import gradient


def linear_scan(
    a: jax.Array,
    x: jax.Array,
    h0: jax.Array | None = None,
    *,
    reverse: bool = False,
    reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Computes `h_t = a_t * h_{t-1} + x_t` along axis 1.

  It runs in the form for the platform that the program is lowered for: a loop
  without temporaries on CPU, a kernel on TPU, and `jax.lax.associative_scan`
  elsewhere. Under `jax.set_mesh`, every device scans its own rows (axes `data`,
  `fsdp`), channels (`model`) and segment of time (`sequence`).

  It is differentiable in `a`, `x` and `h0`, through both results and any number
  of times. Forward mode (`jax.jvp`) works only inside `with
  implementation('reference')` or `'associative'`.

  >>> import jax.numpy as jnp
  >>> x = jnp.ones((1, 4, 1))
  >>> reset = jnp.array([[False, False, True, False]])
  >>> h_last, h = linear_scan(jnp.full((1, 1, 1), .5), x, reset=reset)
  >>> h[0, :, 0]
  Array([1. , 1.5, 1. , 1.5], dtype=float32)

  Args:
    a: Decays, broadcastable to `[B, T, D]`, real or complex. On CPU, a batch or
      time axis of size 1 is not expanded in memory.
    x: Inputs `[B, T, D]`, real or complex.
    h0: State before the first step `[B, D]`; zeros if `None`.
    reverse: If `True`, time runs from `T - 1` down to `0`.
    reset: Booleans `[B, T]`. Where `True`, zero replaces the state that enters
      this step in the direction of travel. Not even a NaN before it reaches
      later values or their gradients.

  Returns:
    `(h_last, h)`: the state after the final step `[B, D]` (index 0 if
    `reverse`), in the accumulation dtype `promote_types(float32, ...)` of `a`
    and `x`, and all states `[B, T, D]`, in the dtype of `x`, complex if `a` is.

  Raises:
    ValueError: If shapes or dtypes disagree.
    TypeError: On forward-mode differentiation outside the two forms named
      above.
  """
  a, x, h0, reset = _checked(a, x, h0, reset)
  if x.size == 0:  # No step, no row or no channel: the state does not change.
    return h0, x
  return gradient.scan(gates.linear, (a, x), h0, reset, reverse=reverse)


def _checked(a, x, h0, reset):
  """Returns the operands in their final shapes and dtypes, or raises."""
  a, x = jnp.asarray(a), jnp.asarray(x)
  checking.has_axes('x', x, 'BTD')
  checking.are_inexact(a=a, x=x)
  a = checking.broadcastable('a', a, x.shape)
  dtype = exact.accumulation_dtype(a, x)
  if jnp.issubdtype(dtype, jnp.complexfloating):
    x = x.astype(jnp.promote_types(x.dtype, jnp.complex64))
  h0 = checking.state(h0, x.shape, dtype)
  return a, x, h0, checking.flag('reset', reset, x.shape)
