"""ParaLSTM (Danieli et al., 2025), https://arxiv.org/abs/2510.21450."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import lstm
from rnnzoo.layers import parallel_cells


class ParaLSTM(parallel_cells.DiagonalCell):
  r"""An LSTM whose units read themselves only, parallel over time.

  .. math::
      u_t &= B x_t + b \quad \text{(three gates, block diagonal)} \\
      f_t &= \sigma(A_f \odot h_{t-1} + C_f \odot c_{t-1} + u_t^f) \\
      n_t &= \tanh(A_n \odot h_{t-1} + u_t^n) \\
      c_t &= f_t \odot c_{t-1} + (1 - f_t) \odot n_t \\
      o_t &= \sigma(A_o \odot h_{t-1} + C_o \odot c_t + u_t^o) \\
      h_t &= o_t \odot \tanh(c_t)

  The Jacobian of a step is a matrix 2 x 2 for each unit, so Newton's method
  (`ops.newton_scan`) solves a sequence with one scan of such matrices an
  iteration (`ops.block_scan`), and its gradient with one reversed scan. The
  authors always make 3 iterations; here they go on until the solution is that
  of the recurrence.

  The state is `2 H` numbers a sequence. A token costs `3 D H / heads`
  multiplications, and about 60 for each unit and iteration.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = ParaLSTM(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, H]
    >>> carry.c.shape, y.shape
    ((2, 32), (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the cell and of the output.
    out_features: `H`.
    num_heads: Number of blocks of B.
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int | None = None,
      *,
      num_heads: int = 1,
      solver: parallel_cells.Solver = 'newton',
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
      num_heads: Number of blocks of B, a divisor of `D` and `H`.
      solver: `newton`, all tokens at once, or `sequential`.
      newton_iterations: The number of iterations of Newton's method; as many as
        needed if `None`. The authors use 3.
      newton_max_slope: Entries of its Jacobian are cut to this size: 1 damps
        the method where it diverges. They are not cut if `None`.
      newton_strict: Whether a solution that misses its tolerance is an error,
        not a warning. There is neither inside `jax.jit`.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide `D` and `H`, or the solver is
        unknown or cannot be used.
    """
    self.set_solver(
        solver, newton_iterations, newton_max_slope, newton_strict
    )
    # Gates in the order f, o, n.
    self.create_maps(
        in_features, hidden_features, num_heads, dtype, param_dtype, rngs,
        fan_out_by_head=True,
    )
    self.C = parallel_cells.diagonal_weights(
        2, self.hidden_features, param_dtype, rngs
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    size = (self.hidden_features,)
    return base.carry_shape(lstm.LSTMCarry, c=size, h=size)

  def update(self, carry, projected, dtype):
    del dtype  # There is no product.
    c, h = carry
    A, C = self.A[...].astype(h.dtype), self.C[...].astype(h.dtype)
    f = jax.nn.sigmoid(A[0] * h + C[0] * c + projected[:, 0])
    n = jnp.tanh(A[2] * h + projected[:, 2])
    c = f * c + (1 - f) * n
    o = jax.nn.sigmoid(A[1] * h + C[1] * c + projected[:, 1])
    h = o * jnp.tanh(c)
    return lstm.LSTMCarry(c, h), h
