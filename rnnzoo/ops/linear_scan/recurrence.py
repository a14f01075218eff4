"""A recurrence and its adjoint, for `gradient.py` and `dispatch.py`."""

from collections.abc import Callable
import dataclasses

import jax.numpy as jnp
from rnnzoo.ops import split_time
from rnnzoo.ops.linear_scan import gates


@dataclasses.dataclass(frozen=True)
class Recurrence:
  """Which recurrence to run, and on which backend.

  Attributes:
    backend: The name of the pinned backend, or None.
    gate: See `gates.py`.
    reverse: Whether time runs from `T - 1` down to 0.
    decay_after: Which of the two forms in `backend.py` it has.
  """

  backend: str | None
  gate: Callable
  reverse: bool
  decay_after: bool = False

  def adjoint(self) -> 'Recurrence':
    """The recurrence of the cotangents, with the decays as an input."""
    return dataclasses.replace(
        self, gate=gates.linear, reverse=not self.reverse,
        decay_after=not self.decay_after,
    )

  def adjoint_of_inputs(self) -> 'Recurrence':
    """The same, with all inputs of this recurrence but a linear gate's last."""
    if self.gate is gates.linear:
      return self.adjoint()
    return dataclasses.replace(self.adjoint(), gate=gates.adjoint(self.gate))


def pull_back(form, kept, h, h0, reset, mask, dlast, dx):
  """Maps the adjoint states `dx` `[B, T, D]` to gradients of the inputs.

  Args:
    form: The recurrence.
    kept: Its inputs, without the last one of a linear gate.
    h: Its states `[B, T, D]`.
    h0: The state before its first step `[B, D]`.
    reset: Booleans `[B, T]` or None.
    mask: Booleans `[B, T]` or None.
    dlast: The cotangent of its last state `[B, D]`.
    dx: The states of its adjoint.

  Returns:
    A tuple of `[B, T, D]`, yet to be summed where an input was broadcast.
  """
  # `a_t` multiplies the state before it, and the cotangent after it.
  dtype = h0.dtype
  if form.decay_after:
    left = h.astype(dtype)
    right = _neighbors(dx, dlast, reset, later=form.reverse)
  else:
    left = _neighbors(h, h0, reset, later=not form.reverse)
    right = dx.astype(dtype)
  return gates.pull_back(form.gate, kept, left * right, dx, reset, mask)


def _neighbors(u, edge, reset, *, later):
  """`u_{t-1}` if `later`, or `u_{t+1}`; 0 beyond a reset, `edge` in the gap."""
  u = split_time.shift(u.astype(edge.dtype), edge, later=later)
  # Before anything multiplies it: 0 * NaN would cross into another sequence.
  return u if reset is None else jnp.where(reset[..., None], 0, u)


def like_inputs(kept, dinputs, dh):
  """Sums gradients to the shapes of the inputs, and casts them to their dtypes.

  Args:
    kept: The inputs, without the last one of a linear gate.
    dinputs: Their gradients.
    dh: The cotangent of the states, which is like the input that is missing.
  """

  def one(u, du):
    if not jnp.issubdtype(u.dtype, jnp.complexfloating):
      du = du.real
    over = tuple(i for i in range(3) if u.shape[i] != du.shape[i])
    return du.sum(over, keepdims=True).astype(u.dtype)

  return tuple(map(one, (*kept, dh)[: len(dinputs)], dinputs))


def like_each_other(inputs, dinputs, h0, dh):
  """Brings the gradients of all backends to the same shapes and dtypes.

  Backends may sum over the time and the features that an input is broadcast
  along. Nothing is summed over rows, because other devices hold some of them.
  """

  def one(u, du):
    dtype = h0.dtype
    if not jnp.issubdtype(u.dtype, jnp.complexfloating):
      du, dtype = du.real, h0.real.dtype
    over = tuple(i for i in (1, 2) if u.shape[i] == 1)
    du = du.sum(over, keepdims=True)
    # A part of a sum keeps its digits.
    return du.astype(u.dtype if u.shape == dh.shape else dtype)

  return tuple(map(one, inputs, dinputs))
