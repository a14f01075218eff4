"""ParaGRU (Danieli et al., 2025), https://arxiv.org/abs/2510.21450."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import parallel_cells


class ParaGRU(parallel_cells.DiagonalCell):
  r"""A GRU whose units read themselves only, parallel over time.

  .. math::
      u_t &= B x_t + b \quad \text{(three gates, block diagonal)} \\
      z_t &= \sigma(A_z \odot h_{t-1} + u_t^z) \\
      r_t &= \sigma(A_r \odot h_{t-1} + u_t^r) \\
      n_t &= \tanh(A_n \odot h_{t-1} \odot r_t + u_t^n) \\
      h_t &= z_t \odot n_t + (1 - z_t) \odot h_{t-1}

  The Jacobian of a step is diagonal, so Newton's method (`ops.newton_scan`)
  solves a sequence with one linear scan an iteration, and its gradient with one
  reversed scan. The authors always make 3 iterations; here they go on until the
  solution is that of the recurrence.

  The state is `H` numbers a sequence. A token costs `3 D H / heads`
  multiplications, and about 20 for each unit and iteration.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = ParaGRU(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # [B, H], [B, T, H]
    >>> carry.shape, y.shape
    ((2, 32), (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the state.
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
      hidden_features: Size `H` of the state; `D` if `None`.
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
    # Gates in the order z, r, n.
    self.create_maps(
        in_features, hidden_features, num_heads, dtype, param_dtype, rngs
    )

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(H,)` of the state of one sequence."""
    return (self.hidden_features,)

  def update(self, carry, projected, dtype):
    del dtype  # There is no product.
    h = carry
    A = self.A[...].astype(h.dtype)
    z = jax.nn.sigmoid(A[0] * h + projected[:, 0])
    r = jax.nn.sigmoid(A[1] * h + projected[:, 1])
    n = jnp.tanh(A[2] * (h * r) + projected[:, 2])
    h = z * n + (1 - z) * h
    return h, h
