"""Legendre Memory Unit (Voelker et al., 2019), NeurIPS 32."""

from collections.abc import Callable
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import base
from rnnzoo.layers import recurrences

DISCRETIZATIONS = ('zoh', 'euler')


class LMUCarry(NamedTuple):
  """State of an LMU: hidden `[B, H]`, memory `[B, N]`, float32 at least."""

  h: jax.Array
  m: jax.Array


class LMU(recurrences.RecurrentCell):
  r"""A cell that keeps a window of its past as Legendre coefficients.

  .. math::
      u_t &= e_x^\top x_t + e_h^\top h_{t-1} + e_m^\top m_{t-1} \\
      m_t &= A m_{t-1} + B u_t \\
      h_t &= f(W_x x_t + W_h h_{t-1} + W_m m_t)

  `A` and `B` are those of `legendre_memory`: the memory `m` holds the last
  `theta` values of the number `u`, as a polynomial of degree `N - 1`. They are
  constants, or parameters if `trainable`. The state is `H + N` numbers a
  sequence. Sequential over time; cost a token: `H (D + H + N) + N^2`
  multiplications and `D + H + N` for `u`, what meets `x` done for all at once.

  Initial values are those of the paper: LeCun uniform for `e_x` and `e_h`, 0
  for `e_m`, Glorot normal for the three `W`. Its successor, keras-lmu, draws
  all of the input's from a Glorot uniform law, and leaves out `e_m` and `W_x`
  unless told otherwise.

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
      theta: Length of the window, in tokens. The paper's is that of the
        sequence, 784 for an image of MNIST.
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
    self.A, self.B = memory_matrices(
        n, theta, discretization, trainable, base.state_dtype(param_dtype)
    )
    encoder = nnx.initializers.lecun_uniform(in_axis=1, out_axis=0)
    kernel = nnx.initializers.glorot_normal(in_axis=1, out_axis=0)
    draw = lambda init, *shape: init(rngs.params(), shape, param_dtype)
    into = dict(axes=(None, 'embed'))
    self.e_x = nnx.Param(draw(encoder, 1, d), **into)
    self.e_h = nnx.Param(draw(encoder, 1, h), axes=(None, None), recurrent=True)
    self.e_m = nnx.Param(
        jnp.zeros((1, n), param_dtype), axes=(None, None), recurrent=True
    )
    self.W_x = nnx.Param(draw(kernel, h, d), axes=('hidden', 'embed'))
    self.W_h = nnx.Param(
        draw(kernel, h, h), axes=('hidden', 'state'), recurrent=True
    )
    self.W_m = nnx.Param(draw(kernel, h, n), axes=('hidden', 'inner'))

  def initialize_carry(self, batch_size: int, dtype=None) -> LMUCarry:
    """Returns the state before the first token: zeros."""
    dtype = base.state_dtype(dtype or self.dtype)
    zeros = lambda n: jnp.zeros((batch_size, n), dtype)
    return LMUCarry(zeros(self.hidden_features), zeros(self.state_features))

  def project(self, x):
    return _times(x, self._stacked(self.e_x, self.W_x), x.dtype)

  def update(self, carry, projected, dtype):
    h, m = carry
    from_h = _times(h, self._stacked(self.e_h, self.W_h), dtype)
    from_both = projected + from_h
    u = from_both[:, :1] + _times(m, self.e_m[...], dtype)
    m = advance(m, self.A, self.B, u)
    h = self.activation_fn(
        from_both[:, 1:] + _times(m, self.W_m[...], dtype)
    )
    return LMUCarry(h, m), h

  def _stacked(self, encoder, kernel):
    """`e` above `W`, so that one matmul serves both: `[1 + H, ...]`."""
    return jnp.concatenate([encoder[...], kernel[...]])


def _times(x, matrix, dtype):
  """`matrix @ x` in the compute dtype, summed in that of the states."""
  return jnp.einsum(
      '...i,oi->...o', x.astype(dtype), matrix.astype(dtype),
      preferred_element_type=base.state_dtype(dtype),
  )


def advance(m, a, b, u):
  """One step of a memory: `A m + B u`.

  Args:
    m: `[..., N]`.
    a: `A` `[N, N]`.
    b: `B` `[N]`.
    u: `[..., 1]`.

  Returns:
    The next memory `[..., N]`, in the dtype of `m`.
  """
  a, b = a[...].astype(m.dtype), b[...].astype(m.dtype)
  # A state in fewer digits than it is kept in would be no float32 state.
  return jnp.matmul(m, a.T, precision='highest') + b * u


def legendre_memory(
    order: int, theta: float, discretization: str = 'zoh'
) -> tuple[np.ndarray, np.ndarray]:
  r"""The system whose state is its input's last `theta` values.

  .. math::
      \theta \dot m &= A m + B u \\
      A_{ij} &= (2i + 1) \begin{cases}
          -1 & i < j \\ (-1)^{i-j+1} & i \ge j \end{cases} \\
      B_i &= (2i + 1) (-1)^i

  of which `m` are the coefficients, in Legendre polynomials shifted to [0, 1],
  of `u` at `theta` times that fraction ago. Discretised with a step of 1.

  >>> a, b = legendre_memory(2, 10.)
  >>> a.round(4)
  array([[ 0.8922, -0.0816],
         [ 0.2448,  0.729 ]])

  Args:
    order: `N`.
    theta: Length of the window, in steps.
    discretization: `zoh` or `euler`.

  Returns:
    `A` `[N, N]` and `B` `[N]`, float64.

  Raises:
    ValueError: If an argument is out of range.
  """
  if order < 1:
    raise ValueError(f'`order` must be at least 1, got {order}.')
  if not theta > 0:
    raise ValueError(f'`theta` must be positive, got {theta}.')
  if discretization not in DISCRETIZATIONS:
    raise ValueError(
        f'`discretization` must be one of {DISCRETIZATIONS}, got '
        f'{discretization!r}.'
    )
  if discretization == 'euler' and not theta > 4 * order:
    raise ValueError(
        f'`theta` must be above 4 * order = {4 * order} for `euler`, got '
        f'{theta}.'
    )
  i = np.arange(order)[:, None]
  j = i.T
  system = np.zeros((order + 1, order + 1))
  system[:-1, :-1] = np.where(i < j, -1.0, (-1.0) ** (i - j + 1))
  system[:-1, -1:] = (-1.0) ** i
  system[:-1] *= (2 * i + 1) / theta
  if discretization == 'zoh':
    system = _exponential(system)
  else:
    system += np.eye(order + 1)
  return system[:-1, :-1], system[:-1, -1]


def memory_matrices(order, theta, discretization, trainable, dtype):
  """`legendre_memory` as a layer keeps it: parameters, or NumPy's float64."""
  matrices = legendre_memory(order, theta, discretization)
  if not trainable:
    return matrices
  a, b = (jnp.asarray(u, dtype) for u in matrices)
  return (
      nnx.Param(a, axes=(None, None), recurrent=True),
      nnx.Param(b, axes=(None,), recurrent=True),
  )


def _exponential(matrix):
  """Taylor's series of a part of `matrix` so small that it needs few terms."""
  norm = np.abs(matrix).sum(0).max()
  halvings = max(0, math.ceil(math.log2(norm)) + 1)
  small = matrix / 2**halvings
  total = term = np.eye(len(matrix))
  for k in range(1, 20):  # 0.5^20 / 20! is below 1e-24.
    term = term @ small / k
    total = total + term
  for _ in range(halvings):
    total = total @ total
  return total
