"""Legendre Memory Unit (Voelker et al., 2019), NeurIPS 32."""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import legendre
from rnnzoo.layers import recurrences

legendre_memory = legendre.legendre_memory  # The matrices of the paper.


class LMUCarry(NamedTuple):
  """State of an LMU: hidden `[B, H]`, memory `[B, N]`, float32 at least."""

  h: jax.Array
  m: jax.Array


class LMU(recurrences.RecurrentCell):
  r"""A cell that stores a window of its past as Legendre coefficients.

  .. math::
      u_t &= e_x^\top x_t + e_h^\top h_{t-1} + e_m^\top m_{t-1} \\
      m_t &= A m_{t-1} + B u_t \\
      h_t &= f(W_x x_t + W_h h_{t-1} + W_m m_t)

  `A` and `B` are those of `legendre.legendre_memory`. The memory `m` holds the
  last `theta` values of the number `u`, as a polynomial of degree `N - 1`. The
  matrices are constants, or parameters if `trainable`. The state is `H + N`
  numbers a sequence. The layer is sequential over time. A token costs `H (D + H
  + N) + N^2` multiplications, and `D + H + N` for `u`; the products with `x`
  are computed for all tokens at once.

  Initial values are those of the paper: LeCun uniform for `e_x` and `e_h`, 0
  for `e_m`, Glorot normal for the three `W`. Its successor, keras-lmu, draws
  the maps of the input from a Glorot uniform distribution, and by default has
  no `e_m` and no `W_x`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = LMU(16, 32, order=8, theta=100, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, H]
    >>> carry.h.shape, carry.m.shape, y.shape
    ((2, 32), (2, 8), (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the hidden state and of the output.
    out_features: `H`.
    state_features: Size `N` of the memory.
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int | None = None,
      *,
      order: int | None = None,
      theta: float = 784.0,
      discretization: str = 'zoh',
      activation_fn: Callable[[jax.Array], jax.Array] = jnp.tanh,
      trainable: bool = False,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      hidden_features: Size `H` of the hidden state; `D` if `None`.
      order: Size `N` of the memory; `H` if `None`.
      theta: Length of the window, in tokens. In the paper it is the length of
        the sequence, 784 for an image of MNIST.
      discretization: `zoh`, exact for a `u` that is constant within a token, or
        `euler`, which needs `theta` above `4 N`.
      activation_fn: The nonlinearity `f`.
      trainable: Whether `A` and `B` are parameters.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters; `A` and `B` are float32 at least.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If `order`, `theta` or `discretization` is out of range.
    """
    self.in_features = d = in_features
    self.hidden_features = self.out_features = h = hidden_features or d
    self.state_features = n = h if order is None else order
    self.activation_fn = activation_fn
    self.dtype = dtype
    self.A, self.B = legendre.memory_matrices(
        n, theta, discretization, trainable, base.state_dtype(param_dtype)
    )
    encoder = nnx.initializers.lecun_uniform(in_axis=1, out_axis=0)
    kernel = nnx.initializers.glorot_normal(in_axis=1, out_axis=0)
    draw = lambda init, *shape: init(rngs.params(), shape, param_dtype)
    self.e_x = nnx.Param(draw(encoder, 1, d), axes=(None, 'embed'))
    self.e_h = nnx.Param(draw(encoder, 1, h), axes=(None, None), recurrent=True)
    self.e_m = nnx.Param(
        jnp.zeros((1, n), param_dtype), axes=(None, None), recurrent=True
    )
    self.W_x = nnx.Param(draw(kernel, h, d), axes=('hidden', 'embed'))
    self.W_h = nnx.Param(
        draw(kernel, h, h), axes=('hidden', 'state'), recurrent=True
    )
    self.W_m = nnx.Param(draw(kernel, h, n), axes=('hidden', 'inner'))

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    return base.carry_shape(
        LMUCarry, h=(self.hidden_features,), m=(self.state_features,)
    )

  def project(self, x):
    return _times(x, self._stacked(self.e_x, self.W_x), x.dtype)

  def update(self, carry, projected, dtype):
    h, m = carry
    from_h = _times(h, self._stacked(self.e_h, self.W_h), dtype)
    from_both = projected + from_h
    u = from_both[:, :1] + _times(m, self.e_m[...], dtype)
    m = legendre.advance(m, self.A, self.B, u)
    h = self.activation_fn(
        from_both[:, 1:] + _times(m, self.W_m[...], dtype)
    )
    return LMUCarry(h, m), h

  def _stacked(self, encoder, kernel):
    """Stacks `e` on `W`, for one matmul with both: `[1 + H, ...]`."""
    return jnp.concatenate([encoder[...], kernel[...]])


def _times(x, matrix, dtype):
  """Returns `matrix @ x` in the compute dtype, with sums in that of states."""
  return jnp.einsum(
      '...i,oi->...o', x.astype(dtype), matrix.astype(dtype),
      preferred_element_type=base.state_dtype(dtype),
  )
