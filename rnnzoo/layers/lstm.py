"""Long Short-Term Memory (Hochreiter, Schmidhuber, 1997; Gers et al., 2000)."""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import linear_maps
from rnnzoo.layers import parallel_cells


class LSTMCarry(NamedTuple):
  """State of an LSTM, both `[B, H]` and float32 at least."""

  c: jax.Array
  h: jax.Array


class LSTM(parallel_cells.MixingCell):
  r"""An LSTM with a forget gate and without peepholes.

  .. math::
      i_t, f_t, o_t &= \sigma(W_{i,f,o} x_t + b_{i,f,o} + U_{i,f,o} h_{t-1}) \\
      g_t &= \tanh(W_g x_t + b_g + U_g h_{t-1}) \\
      c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
      h_t &= o_t \odot \tanh(c_t)

  The state is `2 H` numbers a sequence. The layer is sequential over time, or
  iterates over all tokens at once with `solver='newton'`. A token costs `4 H (D
  + H)` multiplications, of which `4 H D` are computed for all tokens at once.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = LSTM(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, H]
    >>> carry.c.shape, y.shape
    ((2, 32), (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the cell and of the output.
    out_features: `H`.
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int | None = None,
      *,
      forget_bias: float = 1.0,
      solver: parallel_cells.Solver = 'sequential',
      newton_iterations: int | None = None,
      newton_max_slope: float | None = None,
      newton_strict: bool = False,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      hidden_features: Size `H` of the cell; `D` if `None`.
      forget_bias: Initial bias of the forget gate (Jozefowicz et al., 2015).
      solver: `sequential`, one token after the other, or `newton`, all tokens
        at once by `ops.newton_scan`.
      newton_iterations: The number of iterations of Newton's method; as many as
        needed if `None`.
      newton_max_slope: Entries of its Jacobian are cut to this size: 1 damps
        the method where it diverges. They are not cut if `None`.
      newton_strict: Whether a solution that misses its tolerance is an error,
        not a warning. There is neither inside `jax.jit`.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the solver is unknown or cannot be used.
    """
    self.set_solver(
        solver, newton_iterations, newton_max_slope, newton_strict
    )
    self.in_features = in_features
    self.hidden_features = self.out_features = hidden_features or in_features
    self.dtype = dtype
    # Gates in the order i, f, g, o.
    self.input = linear_maps.cell_input(
        4, in_features, self.hidden_features, param_dtype, rngs,
        bias=(0.0, forget_bias, 0.0, 0.0),
    )
    self.hidden = linear_maps.cell_hidden(
        4, self.hidden_features, False, param_dtype, rngs
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    size = (self.hidden_features,)
    return base.carry_shape(LSTMCarry, c=size, h=size)

  def project(self, x):
    return common.project(self.input, x, base.state_dtype(x.dtype))

  def mix(self, h, dtype):
    return common.project(self.hidden, h.astype(dtype), h.dtype)

  def mix_diagonal(self):
    return jnp.diagonal(self.hidden.kernel[...], axis1=0, axis2=2)

  def advance(self, carry, projected, mixed):
    return advance(carry.c, projected + mixed)


def advance(c, gates):
  """Returns the next carry and output for logits `[B, 4, H]` of i, f, g, o."""
  i, f, g, o = (gates[:, k] for k in range(4))
  c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
  h = jax.nn.sigmoid(o) * jnp.tanh(c)
  return LSTMCarry(c, h), h
