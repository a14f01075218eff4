"""A stack of recurrent layers and functions without state."""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base


class Stack(nnx.Module):
  """Recurrent layers and functions without state, one after the other.

  It keeps the contract of `rnnzoo.layers.base`. Its carry is a tuple with one
  entry for each part.

  >>> from flax import nnx
  >>> import jax
  >>> import jax.numpy as jnp
  >>> from rnnzoo import layers
  >>> rngs = nnx.Rngs(0)
  >>> branch = Stack(
  ...     nnx.RMSNorm(8, rngs=rngs), layers.MinGRU(8, rngs=rngs), residual=True
  ... )
  >>> model = Stack(nnx.Linear(3, 8, rngs=rngs), branch, jnp.tanh)
  >>> carry, y = model(jnp.ones((2, 10, 3)))               # [B, T, D]
  >>> carry, y_next = model.step(carry, jnp.ones((2, 3)))  # [B, D]
  >>> y.shape, y_next.shape
  ((2, 10, 8), (2, 8))

  Attributes:
    parts: The parts.
    residual: Whether the input is added to the output.
  """

  def __init__(
      self,
      *parts: 'base.RecurrentLayer | Stack | Callable[[jax.Array], jax.Array]',
      residual: bool = False,
  ):
    """Creates the stack.

    Args:
      *parts: Layers, stacks, and functions or modules that map `[..., D]` token
      by token.
      residual: Whether the input is added to the output.
    """
    self.parts = nnx.List(parts)
    self.residual = residual

  def initialize_carry(self, batch_size: int, dtype=None) -> tuple:
    """Returns the carry before the first token."""
    return tuple(
        part.initialize_carry(batch_size, dtype)
        if isinstance(part, (base.RecurrentLayer, Stack)) else None
        for part in self.parts
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    """Maps `[B, T, ...]` to the next carry and `[B, T, D_out]`."""
    if carry is None:
      carry = self.initialize_carry(x.shape[0], floating_dtype(x))
    return self._masked(carry, x, reset, mask, False, [])

  def step(self, carry, x, *, reset=None, mask=None):
    """Maps one token `[B, ...]` to the next carry and `[B, D_out]`."""
    return self._masked(carry, x, reset, mask, True, [])

  def step_with_inputs(self, carry, x, *, reset=None, mask=None):
    """Runs `step`; a third result is the list of inputs of all layers."""
    inputs = []
    return *self._masked(carry, x, reset, mask, True, inputs), inputs

  def _masked(self, carry, x, reset, mask, step, inputs):
    carry, y = self._run(carry, _present(x, mask), reset, mask, step, inputs)
    return carry, _present(y, mask)

  def _run(self, carry, x, reset, mask, step, inputs):
    start, new = x, []
    for part, old in zip(self.parts, carry):
      if isinstance(part, Stack):
        old, x = part._run(old, x, reset, mask, step, inputs)
      elif isinstance(part, base.RecurrentLayer):
        inputs.append(x)
        flags = dict(reset=reset, mask=mask)
        old, x = part.step(old, x, **flags) if step else part(x, old, **flags)
      else:
        x = part(x)
      new.append(old)
    return tuple(new), start + x if self.residual else x


def _present(x, mask):
  """Returns `x` with 0 where `mask` is `False`, over its leading axes."""
  if mask is None:
    return x
  return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, 0)


def floating_dtype(x):
  """Returns the dtype of `x`, or `None` if `x` is integer tokens."""
  return x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else None
