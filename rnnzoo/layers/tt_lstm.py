"""Fully tensorized LSTM (Onu et al., 2020), https://arxiv.org/abs/2010.04196."""

from collections.abc import Sequence
from typing import Literal

from flax import nnx
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import lstm
from rnnzoo.layers import recurrences
from rnnzoo.layers import tensor_train


class TTLSTM(recurrences.RecurrentCell):
  r"""An LSTM whose matrices are tensor trains.

  .. math::
      i_t, f_t, o_t &= \sigma(W_{i,f,o} x_t + U_{i,f,o} h_{t-1} + b_{i,f,o}) \\
      g_t &= \tanh(W_g x_t + U_g h_{t-1} + b_g) \\
      c_t &= f_t \odot c_{t-1} + i_t \odot g_t, \quad
      h_t = o_t \odot \tanh(c_t)

  W, for all gates, `[D, 4 H]`, is a product of d cores, and so is U, `[H, 4
  H]`. With the factors `m` of D and `n` of `4 H`, core k of W has `r_{k-1} m_k
  n_k r_k` parameters. For D = H = 256 and the defaults, W has 2048 parameters
  instead of 262144. The matrices are never formed.

  The state is `2 H` numbers a sequence. The layer is sequential over time. A
  token costs, for each map, the sum over k of `n_1 ... n_k r_{k-1} r_k m_k ...
  m_d` multiplications; those of W are computed for all tokens at once.

  The defaults are the sizes of the experiments of the authors on sequences of
  pixels. Some versions of their code have one bias, others have two, of which
  only the sum matters. Here there is one.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = TTLSTM(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, H]
    >>> [core.shape for core in layer.input.cores], y.shape
    ([(1, 4, 8, 2), (2, 4, 16, 1)], (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the cell and of the output.
    out_features: `H`.
    input: W and b, a `tensor_train.TTGates` in the order i, f, g, o.
    hidden: U.
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
      hidden_features: Size `H` of the cell; `D` if `None`.
      num_cores: Number `d` of factors of each size.
      rank: Size of the axes that join two cores.
      form: `joint`, all gates in one matrix; `first` or `last`, the same with
        one more core, for the gates, at that end; `separate`, a matrix for each
        gate.
      in_factors: `d` factors of `D`; nearly equal if `None`.
      hidden_factors: `d` factors of `H`, for the rows of U.
      gate_factors: `d` factors of `4 H` if joint, else of `H`, for the columns.
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
        4, in_features, self.hidden_features, num_cores=num_cores, rank=rank,
        form=form, in_factors=in_factors, hidden_factors=hidden_factors,
        gate_factors=gate_factors, hidden_bias=False, param_dtype=param_dtype,
        rngs=rngs,
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    size = (self.hidden_features,)
    return base.carry_shape(lstm.LSTMCarry, c=size, h=size)

  def project(self, x):
    return self.input(x, base.state_dtype(x.dtype))

  def update(self, carry, projected, dtype):
    c, h = carry
    gates = projected + self.hidden(h.astype(dtype), h.dtype)
    return lstm.advance(c, gates)
