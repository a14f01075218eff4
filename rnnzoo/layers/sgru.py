"""Single gate recurrent unit (Wang et al., 2023).

https://arxiv.org/abs/2211.02561
"""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import linear_maps
from rnnzoo.layers import recurrences


class SGRU(recurrences.RecurrentCell):
  r"""A GRU with a single gate: an interpretation.

  .. math::
      z_t &= \sigma(W_z x_t + b_z + U_z h_{t-1}) \\
      n_t &= \tanh(W_n x_t + b_n + U_n h_{t-1}) \\
      h_t &= (1 - z_t) \odot h_{t-1} + z_t \odot n_t

  We had only the abstract of the paper. It says that the cell has a single gate
  and fewer parameters than a GRU. This cell is `GRU` without its reset gate,
  with two thirds of its parameters. The cell of the paper may differ.

  The state is `H` numbers a sequence. The layer is sequential over time. A
  token costs `2 H (D + H)` multiplications, of which `2 H D` are computed for
  all tokens at once.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = SGRU(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # [B, H], [B, T, H]
    >>> carry.shape, y.shape
    ((2, 32), (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the state.
    out_features: `H`.
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int | None = None,
      *,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      hidden_features: Size `H` of the state; `D` if `None`.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.
    """
    self.in_features = in_features
    self.hidden_features = self.out_features = hidden_features or in_features
    self.dtype = dtype
    # In the order z, n.
    self.input = linear_maps.cell_input(
        2, in_features, self.hidden_features, param_dtype, rngs
    )
    self.hidden = linear_maps.cell_hidden(
        2, self.hidden_features, False, param_dtype, rngs
    )

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(H,)` of the state of one sequence."""
    return (self.hidden_features,)

  def project(self, x):
    return common.project(self.input, x, base.state_dtype(x.dtype))

  def update(self, carry, projected, dtype):
    h = self.mix(carry, carry, projected, dtype)
    return h, h

  def mix(self, read, kept, projected, dtype):
    """Returns the next state.

    Args:
      read: The state that the recurrent map reads, `[B, H]`.
      kept: The state that stays if the gate is closed, `[B, H]`.
      projected: The projected token, `[B, 2, H]`.
      dtype: The compute dtype.

    Returns:
      `[B, H]`.
    """
    hidden = common.project(self.hidden, read.astype(dtype), read.dtype)
    gates = projected + hidden
    z, n = jax.nn.sigmoid(gates[:, 0]), jnp.tanh(gates[:, 1])
    return (1 - z) * kept + z * n
