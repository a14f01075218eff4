"""Fully tensorized GRU (Onu et al., 2020), https://arxiv.org/abs/2010.04196."""

from collections.abc import Sequence
from typing import Literal

from flax import nnx
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import gru
from rnnzoo.layers import recurrences
from rnnzoo.layers import tensor_train


class TTGRU(recurrences.RecurrentCell):
  r"""A GRU whose matrices are tensor trains.

  .. math::
      r_t &= \sigma(W_r x_t + b_r + U_r h_{t-1} + c_r) \\
      z_t &= \sigma(W_z x_t + b_z + U_z h_{t-1} + c_z) \\
      n_t &= \tanh(W_n x_t + b_n + r_t \odot (U_n h_{t-1} + c_n)) \\
      h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

  W, for all gates, `[D, 3 H]`, is a product of d cores, and so is U, `[H, 3
  H]`. Neither matrix is ever formed. Parameters and cost are those of `TTLSTM`
  with 3 in place of 4.

  The state is `H` numbers a sequence. The layer is sequential over time. The
  defaults are the sizes of the experiments of the authors on sequences of
  pixels. The equations are those in a comment of their code. The code itself
  mixes with :math:`r_t` in the last line and does not use :math:`z_t`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = TTGRU(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # [B, H], [B, T, H]
    >>> [core.shape for core in layer.input.cores], y.shape
    ([(1, 4, 8, 2), (2, 4, 12, 1)], (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the state.
    out_features: `H`.
    input: W and b, a `tensor_train.TTGates` in the order r, z, n.
    hidden: U and c.
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int | None = None,
      *,
      num_cores: int = 2,
      rank: int = 2,
      form: Literal['joint', 'first', 'last', 'separate'] = 'joint',
      in_factors: Sequence[int] | None = None,
      hidden_factors: Sequence[int] | None = None,
      gate_factors: Sequence[int] | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      hidden_features: Size `H` of the state; `D` if `None`.
      num_cores: Number `d` of factors of each size.
      rank: Size of the axes that join two cores.
      form: `joint`, all gates in one matrix; `first` or `last`, the same with
        one more core, for the gates, at that end; `separate`, a matrix for each
        gate.
      in_factors: `d` factors of `D`; nearly equal if `None`.
      hidden_factors: `d` factors of `H`, for the rows of U.
      gate_factors: `d` factors of `3 H` if joint, else of `H`, for the columns.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the factors do not fit, or an option is out of range.
    """
    self.in_features = in_features
    self.hidden_features = self.out_features = hidden_features or in_features
    self.dtype = dtype
    self.input, self.hidden = tensor_train.cell_maps(
        3, in_features, self.hidden_features, num_cores=num_cores, rank=rank,
        form=form, in_factors=in_factors, hidden_factors=hidden_factors,
        gate_factors=gate_factors, hidden_bias=True, param_dtype=param_dtype,
        rngs=rngs,
    )

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(H,)` of the state of one sequence."""
    return (self.hidden_features,)

  def project(self, x):
    return self.input(x, base.state_dtype(x.dtype))

  def update(self, carry, projected, dtype):
    hidden = self.hidden(carry.astype(dtype), carry.dtype)
    h = gru.advance(carry, projected, hidden)
    return h, h
