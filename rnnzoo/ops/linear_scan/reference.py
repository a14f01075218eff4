"""The linear recurrence in its simplest form: a `lax.scan` over the steps."""

import jax
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import backend
from rnnzoo.ops.linear_scan import gates


def scan(inputs, h0, reset, mask, *, gate, reverse, decay_after):
  """Runs one step after the other; JAX itself differentiates it."""
  last = inputs[-1]
  a, x = gates.evaluate(gate, inputs, h0.dtype, reset, mask, decay_after)
  by_time = lambda u: jnp.moveaxis(jnp.broadcast_to(u, last.shape), 1, 0)
  steps = by_time(a), by_time(x)
  if reset is not None:
    steps += (reset.T[..., None],)

  def step(carry, inputs):
    a_t, x_t, *reset_t = inputs
    # Both are selected before they meet: 0 * NaN would reach their gradients.
    clear = lambda u: jnp.where(reset_t[0], 0, u) if reset_t else u
    if decay_after:
      h = carry + x_t
      return clear(a_t) * clear(h), h
    h = clear(a_t) * clear(carry) + x_t
    return h, h

  carry, h = jax.lax.scan(step, h0, steps, reverse=reverse)
  return carry, jnp.moveaxis(h, 0, 1).astype(last.dtype)


BACKEND = backend.Backend(scan, differentiable=True)
