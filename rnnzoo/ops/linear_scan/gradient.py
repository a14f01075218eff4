"""The gradient of the linear recurrence, written once for all backends.

It is itself such a recurrence, in the opposite direction, so it can be
differentiated again. A backend may bring a faster form of it, in one sweep.
"""

import jax
from rnnzoo import mesh
from rnnzoo.ops.linear_scan import dispatch
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import recurrence


def scan(gate, inputs, h0, reset=None, mask=None, *, reverse=False):
  """Runs `h_t = a_t * h_{t-1} + x_t` where `a_t, x_t = gate(*inputs_t)`.

  Args:
    gate: A function `(start, *inputs) -> (a, x)`, the same object each time.
    inputs: Arrays `[B|1, T|1, D|1]`, the last one `[B, T, D]`.
    h0: `[B, D]` in the dtype of states.
    reset: Booleans `[B, T]` or None.
    mask: Booleans `[B, T]` or None; where False, `a = 1` and `x = 0`.
    reverse: Whether time runs from `T - 1` down to `0`.

  Returns:
    `(h_last, h)`, the latter in the dtype of the last input.

  Raises:
    NotImplementedError: If the pinned backend cannot take these inputs.
    TypeError: On forward-mode differentiation of a hand-written gradient.
  """
  form = recurrence.Recurrence(dispatch.pinned(), gate, reverse)
  if mask is not None and reset is not None:
    reset = reset & mask
  # Outside the hand-written rule, which then need not undo it.
  *inputs, h0, reset, mask = mesh.align(
      inputs[-1], (*inputs, h0, reset, mask), dispatch.layouts(len(inputs))
  )
  operands = tuple(inputs), h0, reset, mask
  if dispatch.is_differentiable(form.backend):
    return dispatch.run(form, *operands)
  try:
    return _scan(form, *operands)
  except TypeError as error:
    if 'forward-mode' not in str(error):
      raise
    raise TypeError(
        'Scans have a hand-written reverse-mode gradient; for jax.jvp, jacfwd '
        "or hessian trace them inside `with rnnzoo.ops.implementation("
        "'associative')` (or 'reference')."
    ) from error


@lambda fn: jax.custom_vjp(fn, nondiff_argnums=(0,))
def _scan(form, inputs, h0, reset, mask):
  return dispatch.run(form, inputs, h0, reset, mask)


def _forward(form, inputs, h0, reset, mask):
  last, h = _scan(form, inputs, h0, reset, mask)
  # The adjoint of a linear step does not read its input.
  kept = inputs[:-1] if form.gate is gates.linear else inputs
  return (last, h), (kept, h, h0, reset, mask)


def _backward(form, residuals, cotangents):
  kept, h, h0, reset, mask = residuals
  dinputs, dh0 = _gradient(form, kept, h, h0, reset, mask, *cotangents)
  return dinputs, dh0, None, None


_scan.defvjp(_forward, _backward)


@lambda fn: jax.custom_vjp(fn, nondiff_argnums=(0,))
def _gradient(form, kept, h, h0, reset, mask, dlast, dh):
  """Returns the gradients of the inputs, in their shapes, and of `h0`."""
  if form.decay_after:
    return _gradient_by_scan(form, kept, h, h0, reset, mask, dlast, dh)
  *dinputs, dh0 = dispatch.run_gradient(
      form, kept, h, h0, reset, mask, dlast, dh
  )
  return recurrence.like_inputs(kept, dinputs, dh), dh0


def _gradient_forward(form, *operands):
  return _gradient(form, *operands), operands


def _gradient_backward(form, operands, cotangents):
  # The same again, in operations that have gradients themselves.
  kept, h, h0, reset, mask, dlast, dh = operands

  def again(kept, h, h0, dlast, dh):
    return _gradient_by_scan(form, kept, h, h0, reset, mask, dlast, dh)

  _, vjp = jax.vjp(again, kept, h, h0, dlast, dh)
  dkept, dh, dh0, ddlast, ddh = vjp(cotangents)
  return dkept, dh, dh0, None, None, ddlast, ddh


_gradient.defvjp(_gradient_forward, _gradient_backward)


def _gradient_by_scan(form, kept, h, h0, reset, mask, dlast, dh):
  if form.gate is gates.linear and mask is None:
    a = kept[0]
  else:
    a, _ = gates.evaluate(form.gate, kept, h0.dtype, reset, mask)
  dh0, dx = _scan(form.adjoint(), (a, dh), dlast, reset, None)
  dinputs = recurrence.pull_back(form, kept, h, h0, reset, mask, dlast, dx)
  return recurrence.like_inputs(kept, dinputs, dh), dh0
