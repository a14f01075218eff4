"""What a backend of the linear recurrence provides.

A backend is a file with a function

    scan(inputs, h0, reset, mask, *, gate, reverse, decay_after) -> (last, h)

and, at its end, `BACKEND = backend.Backend(scan)`. One line in `dispatch.py`
registers it. The arguments are those of one device:

- `inputs`: a tuple of arrays `[B|1, T|1, D|1]`. The last one is `[B, T, D]`
  with T >= 1 and has the dtype of `h`.
- `h0`: `[B, D]` in the accumulation dtype.
- `reset`, `mask`: booleans `[B, T]`, or None.
- `gate(start, *inputs)` returns `a` and `x`, element by element, in the
  accumulation dtype (`gates.py`).

In the direction of travel, where `reset_t` replaces the decayed state by zero:

    decay_after=False    h_t = a_t * h_{t-1} + x_t,              last = h_T
    decay_after=True     h_t = c_{t-1} + x_t,  c_t = a_t * h_t,  last = c_T

Where `mask_t` is False, `a_t = 1` and, in the first form, `x_t = 0`. The second
form is the adjoint of the first in the opposite direction, and the first is the
adjoint of the second. So one gradient rule is enough for both, to any order,
and the backward pass needs no shifted copy of `a`.
"""

from collections.abc import Callable
from typing import NamedTuple


class Backend(NamedTuple):
  """The functions of a backend; only `scan` is required.

  Attributes:
    scan: See the docstring of this module.
    summary: `summary(inputs, reset, mask, *, gate, reverse, decay_after) ->
      (product, last)` describes the segment of time that one of several devices
      holds: the product of all `a_t`, or 0 if there is a reset, and the result
      of the scan from zero, both `[B, D]`. If None, `scan` is used for it.
    gradient: `gradient(inputs, h, h0, reset, mask, dlast, dh, *, gate, reverse)
      -> (dinputs, dh0)` does in one sweep what otherwise takes a scan and a
      pass over its results. It must not read the last input if the gate is
      `gates.linear`. If an input has size 1 along an axis, its gradient need
      not be summed over that axis.
    supports: `supports(inputs, h0, reset, mask, *, gate, decay_after)` returns
      a sentence that says why the backend cannot take these inputs, or None.
    is_fastest: `is_fastest(shape)` says whether the backend may be chosen for
      `[B, T, D]` on its own platform, if no backend is pinned.
    differentiable: Whether JAX differentiates `scan` itself, which allows
      forward mode. Otherwise `gradient.py` does.
    gates_first: Whether gates are computed before the scan, unless this backend
      is pinned.
  """

  scan: Callable
  summary: Callable | None = None
  gradient: Callable | None = None
  supports: Callable = lambda *_, **__: None
  is_fastest: Callable = lambda shape: True
  differentiable: bool = False
  gates_first: bool = False
