"""Elman network, the simple RNN (Elman, 1990)."""

from collections.abc import Callable
import math

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import linear_maps
from rnnzoo.layers import parallel_cells
from rnnzoo.layers import state_space

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = dict(
    tanh=jnp.tanh, relu=jax.nn.relu, none=lambda u: u
)
HIDDEN_INITIALIZATIONS = dict(
    orthogonal=nnx.initializers.orthogonal,
    glorot_normal=nnx.initializers.glorot_normal,
)


class Elman(parallel_cells.MixingCell):
  r"""A simple recurrent network.

  .. math::
      h_t &= f(W x_t + b + U h_{t-1}), \qquad f = \tanh \\
      y_t &= h_t \quad \text{or, if projected,} \quad C h_t + D \odot x_t

  The state is `H` numbers a sequence. The layer is sequential over time, or
  iterates over all tokens at once with `solver='newton'`. A token costs `H (D +
  H)` multiplications, of which `H D` are computed for all tokens at once. A
  projection costs `D H` more, for all tokens at once.

  The options make it the dense RNN that the LRU is compared with (Orvieto et
  al., 2023, https://arxiv.org/abs/2303.06349): `activation` `relu`, `tanh` or
  `none`, `hidden_init='glorot_normal'`, `use_bias=False` and
  `use_projection=True`.

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
    out_features: `H`, or `D` if the output is projected.
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int | None = None,
      *,
      activation: str = 'tanh',
      hidden_init: str = 'orthogonal',
      use_bias: bool = True,
      use_projection: bool = False,
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
      activation: The function `f`: `tanh`, `relu` or `none`.
      hidden_init: Initial U: `orthogonal`, or `glorot_normal` with variance
        1 / H.
      use_bias: Whether there is a `b`.
      use_projection: Whether the output is `C h + D x`, with a matrix C and a
        vector D. They start as in the LRU, with variances 1 / H and 1.
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
      ValueError: If an option is unknown.
    """
    self.set_solver(
        solver, newton_iterations, newton_max_slope, newton_strict
    )
    choices = state_space.check_choice
    choices('activation', activation, ACTIVATIONS)
    choices('hidden_init', hidden_init, HIDDEN_INITIALIZATIONS)
    self.in_features = d = in_features
    self.hidden_features = h = hidden_features or in_features
    self.out_features = d if use_projection else h
    self.activation = activation
    self.dtype = dtype
    self.input = linear_maps.cell_input(
        1, d, h, param_dtype, rngs, use_bias=use_bias
    )
    self.hidden = linear_maps.cell_hidden(
        1, h, False, param_dtype, rngs, HIDDEN_INITIALIZATIONS[hidden_init]()
    )
    if use_projection:
      normal = lambda *s: jax.random.normal(rngs.params(), s, param_dtype)
      self.C = nnx.Param(normal(h, d) / math.sqrt(h), axes=('hidden', 'embed'))
      self.D = nnx.Param(normal(d), axes=(None,))
    else:
      self.C = None

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
    h = ACTIVATIONS[self.activation](projected + mixed)[:, 0]
    return h, h

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    carry, h = super().__call__(x, carry, reset=reset, mask=mask)
    return carry, self._read(h, x, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    carry, h = super().step(carry, x, reset=reset, mask=mask)
    return carry, self._read(h, x, mask)

  def _read(self, h, x, mask):
    """Maps states `[..., H]` and inputs `[..., D]` to outputs."""
    if self.C is None:
      return h
    skip = common.scaled(base.masked(x, mask).astype(h.dtype), self.D[...])
    return base.masked(common.product(h, self.C[...]) + skip, mask)
