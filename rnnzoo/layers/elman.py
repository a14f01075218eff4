"""Elman network, the simple RNN (Elman, 1990)."""

from flax import nnx
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import linear_maps
from rnnzoo.layers import recurrences


class Elman(recurrences.RecurrentCell):
  r"""A simple recurrent network.

  .. math::
      h_t = \tanh(W x_t + b + U h_{t-1})

  The state is `H` numbers a sequence. The layer is sequential over time. A
  token costs `H (D + H)` multiplications, of which `H D` are computed for all
  tokens at once.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = Elman(16, 32, rngs=nnx.Rngs(0))
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
    self.input = linear_maps.cell_input(
        1, in_features, self.hidden_features, param_dtype, rngs
    )
    self.hidden = linear_maps.cell_hidden(
        1, self.hidden_features, False, param_dtype, rngs
    )

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(H,)` of the state of one sequence."""
    return (self.hidden_features,)

  def project(self, x):
    return common.project(self.input, x, base.state_dtype(x.dtype))

  def update(self, carry, projected, dtype):
    hidden = common.project(self.hidden, carry.astype(dtype), carry.dtype)
    h = jnp.tanh(projected + hidden)[:, 0]
    return h, h
