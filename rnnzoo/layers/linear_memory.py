"""The memory of linear attention: one matrix for each head, perhaps decaying.

RetNet, whose carry holds positions too, calls the op by itself.
"""

from typing import Any

import jax
from rnnzoo import ops
from rnnzoo.layers import base


class LinearMemory(base.RecurrentLayer):
  """A layer around `ops.linear_attention`: maps of a token, memory, output.

  A subclass defines `_operands`, what the op reads, and `_readout`, the output
  for what the memory returns.
  """

  num_heads: int
  key_features: int
  value_features: int
  chunk_size: int | None

  def _operands(self, x) -> dict[str, Any]:
    """Maps `[..., D]` to `q`, `k`, `v` and, if used, `log_decay`, `scale`."""
    raise TypeError(f'{type(self).__name__} does not define _operands.')

  def _readout(self, o, x) -> jax.Array:
    """Maps `o` `[..., H, V]` of the memory and `x` `[..., D]` to `[..., D]`."""
    raise TypeError(f'{type(self).__name__} does not define _readout.')

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes `(H, K, V)` of the state of one sequence."""
    return (self.num_heads, self.key_features, self.value_features)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    S, o = ops.linear_attention(
        **self._operands(x), S0=carry, reset=reset, mask=mask,
        chunk_size=self.chunk_size,
    )
    return S, base.masked(self._readout(o, x), mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    old = carry if reset is None else base.select(reset, initial, carry)
    S, o = ops.linear_attention_step(**self._operands(x), S=old)
    if mask is not None:
      S = base.select(mask, S, carry)
    return S, base.masked(self._readout(o, x), mask)
