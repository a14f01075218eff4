"""SGRU with time feed-forward connections (Wang et al., 2023).

https://arxiv.org/abs/2211.02561
"""

from typing import NamedTuple

import jax
from rnnzoo.layers import base
from rnnzoo.layers import sgru


class TFCSGRUCarry(NamedTuple):
  """State of a TFC-SGRU, both `[B, H]` and float32 at least.

  Attributes:
    h: The last output.
    before: The output before that.
  """

  h: jax.Array
  before: jax.Array


class TFCSGRU(sgru.SGRU):
  r"""An SGRU that keeps its state of two steps ago: an interpretation.

  .. math::
      z_t &= \sigma(W_z x_t + b_z + U_z h_{t-1}) \\
      n_t &= \tanh(W_n x_t + b_n + U_n h_{t-1}) \\
      h_t &= (1 - z_t) \odot h_{t-2} + z_t \odot n_t

  We had only the abstract of the paper. It says that a branch passes the hidden
  state of time t - 2 to time t, without the nonlinearity of time t - 1. Here it
  is the state that `SGRU` keeps; everything else, including the parameters, is
  the same. If the gate is closed the state skips a token, so a state of T
  tokens ago is only T / 2 steps away. The cell of the paper may differ.

  The state is `2 H` numbers a sequence. The layer is sequential over time. A
  token costs `2 H (D + H)` multiplications, of which `2 H D` are computed for
  all tokens at once.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = TFCSGRU(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, H]
    >>> carry.before.shape, y.shape
    ((2, 32), (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of a state.
    out_features: `H`.
  """

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    size = (self.hidden_features,)
    return base.carry_shape(TFCSGRUCarry, h=size, before=size)

  def update(self, carry, projected, dtype):
    h = self.mix(carry.h, carry.before, projected, dtype)
    return TFCSGRUCarry(h, carry.h), h
