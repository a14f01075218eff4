"""Gated Recurrent Unit (Cho et al., 2014), https://arxiv.org/abs/1406.1078."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import linear_maps
from rnnzoo.layers import parallel_cells

_TWO_PRODUCTS = (
    "solver='newton' and `residual` need `reset_after=True`: otherwise two "
    'products follow each other in one step.'
)


class GRU(parallel_cells.MixingCell):
  r"""A gated recurrent unit, in both common forms.

  With `reset_after=True`, as in cuDNN, PyTorch and Flax, :math:`z` is the
  weight of the old state:

  .. math::
      r_t &= \sigma(W_r x_t + b_r + U_r h_{t-1} + c_r) \\
      z_t &= \sigma(W_z x_t + b_z + U_z h_{t-1} + c_z) \\
      n_t &= \tanh(W_n x_t + b_n + r_t \odot (U_n h_{t-1} + c_n)) \\
      h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

  With `reset_after=False`, as in Chung et al. (2014), arXiv 1412.3555,
  :math:`z` is the weight of the new state, and there is no :math:`c`:

  .. math::
      n_t &= \tanh(W_n x_t + b_n + U_n (r_t \odot h_{t-1})) \\
      h_t &= (1 - z_t) \odot h_{t-1} + z_t \odot n_t

  The state is `H` numbers a sequence. The layer is sequential over time, or
  iterates over all tokens at once with `solver='newton'`. A token costs `3 H (D
  + H)` multiplications, of which `3 H D` are computed for all tokens at once.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = GRU(16, 32, rngs=nnx.Rngs(0))
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
      reset_after: bool = True,
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
      hidden_features: Size `H` of the state; `D` if `None`.
      reset_after: Whether the reset gate acts after the recurrent product.
      solver: `sequential`, one token after the other, or `newton`, all tokens
        at once by `ops.newton_scan`, which needs `reset_after`.
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
    if solver == 'newton' and not reset_after:
      raise ValueError(_TWO_PRODUCTS)
    self.in_features = in_features
    self.hidden_features = self.out_features = hidden_features or in_features
    self.reset_after = reset_after
    self.dtype = dtype
    # Gates in the order r, z, n.
    self.input = linear_maps.cell_input(
        3, in_features, self.hidden_features, param_dtype, rngs
    )
    self.hidden = linear_maps.cell_hidden(
        3, self.hidden_features, reset_after, param_dtype, rngs
    )

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(H,)` of the state of one sequence."""
    return (self.hidden_features,)

  def project(self, x):
    return common.project(self.input, x, base.state_dtype(x.dtype))

  def mix(self, h, dtype):
    return common.project(self.hidden, h.astype(dtype), h.dtype)

  def mix_diagonal(self):
    return jnp.diagonal(self.hidden.kernel[...], axis1=0, axis2=2)

  def advance(self, carry, projected, mixed):
    h = advance(carry, projected, mixed)
    return h, h

  def linearize(self, carry, projected, dtype):
    if not self.reset_after:
      raise ValueError(_TWO_PRODUCTS)
    return super().linearize(carry, projected, dtype)

  def update(self, carry, projected, dtype):
    if self.reset_after:
      return super().update(carry, projected, dtype)
    h = carry
    x_r, x_z, x_n = (projected[:, i] for i in range(3))
    kernel = self.hidden.kernel[...].astype(dtype)
    times = lambda h, k: jnp.tensordot(
        h.astype(dtype), k, 1, preferred_element_type=h.dtype
    )
    gates = times(h, kernel[:, :2])
    r = jax.nn.sigmoid(x_r + gates[:, 0])
    z = jax.nn.sigmoid(x_z + gates[:, 1])
    n = jnp.tanh(x_n + times(r * h, kernel[:, 2]))
    h = (1 - z) * h + z * n
    return h, h


def advance(h, projected, hidden):
  """Returns the next state for both maps `[B, 3, H]`, with `reset_after`."""
  r = jax.nn.sigmoid(projected[:, 0] + hidden[:, 0])
  z = jax.nn.sigmoid(projected[:, 1] + hidden[:, 1])
  n = jnp.tanh(projected[:, 2] + r * hidden[:, 2])
  return (1 - z) * n + z * h
