"""Gates: functions from the inputs of a step to its decay and its addend.

A gate maps the inputs of a step to the `a_t` and `x_t` of `h_t = a_t h_{t-1} +
x_t`, element by element. Kernels compute and differentiate it inside.
"""

import functools

import jax
import jax.numpy as jnp


def linear(start, a, x):
  """The gate of `linear_scan`: the inputs are `a` and `x` already."""
  del start
  return a, x


def evaluate(gate, inputs, dtype, reset, mask, decay_after=False):
  """Runs a gate over whole sequences.

  Args:
    gate: `(start, *inputs) -> (a, x)`; `start` is `reset`, or None.
    inputs: Arrays, broadcastable to `[B, T, D]`.
    dtype: The dtype of the computation.
    reset: Booleans `[B, T]` or None.
    mask: Booleans `[B, T]` or None; where False, `a = 1` and `x = 0`.
    decay_after: Whether `x` is a cotangent, which a masked step keeps.

  Returns:
    `(a, x)` in `dtype`, each broadcastable to `[B, T, D]`.
  """
  start = None if reset is None else reset[..., None]
  inputs = tuple(u.astype(dtype) for u in inputs)
  if mask is None:
    return gate(start, *inputs)
  present = mask[..., None]
  # Selected before the gate, because the derivative of a NaN is NaN, and again
  # after it.
  shown = [jnp.where(present, u, 0) for u in inputs]
  if decay_after:
    shown[-1] = inputs[-1]
  a, x = gate(start, *shown)
  a = jnp.where(present, a, 1)
  return a, x if decay_after else jnp.where(present, x, 0)


def pull_back(gate, inputs, da, dx, reset, mask):
  """Maps gradients of `a` and `x` `[B, T, D]` to those of the gate's inputs.

  Returns:
    A tuple of `[B, T, D]` in the dtype of `da`, 0 where masked. If an input was
    broadcast, its gradient is yet to be summed.
  """
  if gate is linear:
    dinputs = da, dx
  else:
    start = None if reset is None else reset[..., None]
    full = (jnp.broadcast_to(u, dx.shape).astype(da.dtype) for u in inputs)
    _, vjp = jax.vjp(lambda *u: gate(start, *u), *full)
    dinputs = vjp((da, dx.astype(da.dtype)))
  if mask is None:
    return dinputs
  return tuple(jnp.where(mask[..., None], u, 0) for u in dinputs)


@functools.cache
def adjoint(gate):
  """Returns the gate of the adjoint recurrence: `(*inputs, dh) -> (a, dh)`."""
  return lambda start, *inputs: (gate(start, *inputs[:-1])[0], inputs[-1])
