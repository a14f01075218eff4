"""Forms that many layers share: nonlinear cells and linear recurrences.

A nonlinear layer inherits `RecurrentCell` and is scanned token by token. A
diagonal linear layer inherits `LinearRecurrence`, or `TimedRecurrence` if its
steps may differ in length, and is parallel over time: one `ops.linear_scan`.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base

# XLA:CPU in JAX 0.10.2 converts a whole stack of bfloat16 outputs to float32
# for every row that a loop writes to it, which is ten times slower at T = 4096.
# JAX 0.12 does not.
_STACK_IN_FLOAT32 = jax.__version_info__ < (0, 12)


class RecurrentCell(base.RecurrentLayer):
  """A layer with a nonlinear recurrence, which is scanned token by token.

  A subclass defines `project`, the part of the computation that does not need
  the state (one matmul for the whole sequence), and `update`, the rest.
  """

  gathers_time = True

  def project(self, x: jax.Array) -> Any:
    """Maps `[..., D_in]` to a pytree of `[..., ...]`."""
    raise TypeError(f'{type(self).__name__} does not define project.')

  def update(
      self, carry: base.Carry, projected: Any, dtype: jnp.dtype
  ) -> tuple[base.Carry, jax.Array]:
    """Maps a carry and a projected token to the next carry and `[B, D_out]`.

    Matmuls run in the compute dtype `dtype`; gates and states have the dtype of
    the carry.
    """
    raise TypeError(f'{type(self).__name__} does not define update.')

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(self, x, carry, reset, mask)
    graphdef, weights = nnx.split(self)
    run = lambda weights, rows: nnx.merge(graphdef, weights)._scan(
        *rows, dtype=x.dtype
    )
    # On several devices this gathers the weights, and sums their gradients,
    # once instead of once a token.
    carry, y = ops.map_rows(
        run, weights, (carry, self.project(x), initial, reset, mask)
    )
    return carry, y.astype(x.dtype)

  def _scan(self, carry, projected, initial, reset, mask, dtype):
    by_time = lambda u: jnp.moveaxis(u, 1, 0)

    def body(carry, inputs):
      projected, reset_t, mask_t = inputs
      carry, y = self._guarded(
          carry, projected, initial, reset_t, mask_t, dtype
      )
      if _STACK_IN_FLOAT32:
        y = y.astype(base.state_dtype(dtype))
      return carry, y

    inputs = jax.tree.map(by_time, (projected, reset, mask))
    carry, y = jax.lax.scan(body, carry, inputs)
    return carry, jnp.moveaxis(y, 0, 1)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    projected = self.project(x)
    return self._guarded(carry, projected, initial, reset, mask, x.dtype)

  def _guarded(self, carry, projected, initial, reset, mask, dtype):
    """Runs `update` on one token, with its flags."""
    entering = carry if reset is None else base.select(reset, initial, carry)
    new, y = self.update(entering, projected, dtype)
    y = y.astype(dtype)
    if mask is None:
      return new, y
    return base.select(mask, new, carry), base.masked(y, mask)


class LinearRecurrence(base.RecurrentLayer):
  """A layer `h_t = a_t * h_{t-1} + b_t`, parallel over time.

  A subclass defines `recurrence`, which gives `a` and `b` of each token, and
  `readout`, which maps states to outputs. Neither mixes different times.

  Attributes:
    initial_is_zero: Whether `initialize_carry` gives zeros; `False` for a
      learned initial state.
  """

  initial_is_zero: bool = True

  def recurrence(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps `[..., D_in]` to decays, broadcastable to, and inputs `[..., H]`."""
    raise TypeError(f'{type(self).__name__} does not define recurrence.')

  def readout(self, h: jax.Array, x: jax.Array) -> jax.Array:
    """Maps states `[..., H]` and inputs `[..., D_in]` to `[..., D_out]`."""
    raise TypeError(f'{type(self).__name__} does not define readout.')

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(self, x, carry, reset, mask)
    a, b = self.recurrence(x)
    return self._scan(a, b, x, carry, initial, reset, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    a, b = self.recurrence(x)
    return self._advance(a, b, x, carry, initial, reset, mask)

  def _scan(self, a, b, x, carry, initial, reset, mask):
    """Maps decays and inputs of a sequence to the last carry and outputs."""
    if reset is not None and not self.initial_is_zero:
      b = jnp.where(reset[..., None], b + a * initial[:, None], b)
    a, b = base.idle_where_absent(a, b, mask)
    carry, h = ops.linear_scan(a, b, carry, reset=reset)
    return carry, base.masked(self.readout(h, x), mask)

  def _advance(self, a, b, x, carry, initial, reset, mask):
    """Maps decays and inputs of one token to the next carry and outputs."""
    entering = carry if reset is None else base.select(reset, initial, carry)
    h = a * entering + b
    carry = h if mask is None else base.select(mask, h, carry)
    return carry, base.masked(self.readout(h, x), mask)


class TimedRecurrence(LinearRecurrence):
  """A linear recurrence whose steps may differ in length.

  `dt` `[B, T]`, in `step` `[B]`, is the length of each step as a multiple of
  the usual length, not negative. `None` means 1. It has a gradient.
  """

  def recurrence(
      self, x: jax.Array, dt: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """`LinearRecurrence.recurrence`, with the lengths of the steps `[...]`."""
    raise TypeError(f'{type(self).__name__} does not define recurrence.')

  def __call__(self, x, carry=None, *, reset=None, mask=None, dt=None):
    x, carry, initial, reset = base.prepare(self, x, carry, reset, mask)
    a, b = self.recurrence(x, base.prepare_dt(dt, x, mask))
    return self._scan(a, b, x, carry, initial, reset, mask)

  def step(self, carry, x, *, reset=None, mask=None, dt=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    a, b = self.recurrence(x, base.prepare_dt(dt, x, mask))
    return self._advance(a, b, x, carry, initial, reset, mask)


class computed:  # A decorator, in lower case like `property`.
  """A property whose value a subclass or an instance may set by assignment."""

  def __init__(self, compute: Callable):
    self._compute = compute

  def __get__(self, layer, owner=None) -> Any:
    return self if layer is None else self._compute(layer)
