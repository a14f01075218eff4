"""The linear recurrence as one would write it on a blackboard: `lax.scan`."""

import jax
import jax.numpy as jnp


def scan(a, x, h0, reset, *, reverse, decay_after):
  """One step after the other; JAX itself differentiates it."""
  dtype = h0.dtype
  by_time = lambda u: jnp.moveaxis(jnp.broadcast_to(u, x.shape), 1, 0)
  inputs = (by_time(a).astype(dtype), by_time(x).astype(dtype))
  if reset is not None:
    inputs += (reset.T[..., None],)

  def step(carry, inputs):
    a_t, x_t, *reset_t = inputs
    # Both are selected before they meet: 0 * NaN would reach their gradients.
    clear = lambda u: jnp.where(reset_t[0], 0, u) if reset_t else u
    if decay_after:
      h = carry + x_t
      return clear(a_t) * clear(h), h
    h = clear(a_t) * clear(carry) + x_t
    return h, h

  last, h = jax.lax.scan(step, h0, inputs, reverse=reverse)
  return last, jnp.moveaxis(h, 0, 1).astype(x.dtype)
