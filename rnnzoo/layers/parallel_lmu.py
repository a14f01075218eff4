"""Parallel LMU (Chilkuri, Eliasmith, 2021), https://arxiv.org/abs/2102.11417."""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import legendre


class ParallelLMU(base.RecurrentLayer):
  r"""An LMU whose memory does not depend on its output.

  .. math::
      u_t &= f_1(W_u x_t + b_u) \\
      m_t &= A m_{t-1} + B u_t \quad \text{in each of } M \text{ channels} \\
      y_t &= f_2(W_m m_t + W_x x_t + b_h)

  `A` and `B` are those of `legendre.legendre_memory`. Every channel of the
  memory holds the last `theta` values of its `u`, as a polynomial of degree
  `N - 1`. The matrices are constants, or parameters if `trainable`. The system
  is linear and time invariant, so a whole sequence is one `ops.lti_scan`: on
  CPU, and wherever `reset` or `mask` is given, in chunks of tokens by matmul;
  elsewhere by FFT. The state is `M N` numbers a sequence.

  A token costs `M N H` multiplications for the readout and `D (M + H)` for the
  inputs. `step` adds `M N^2`, chunks a sixteenth of that, the FFT `H log T`.

  In the paper `h` has no state of its own, and `u` does not depend on `m`. The
  paper and its predecessor keep `A` and `B` fixed. We had only the first two
  equations of the paper; the third is that of the most used port, whose golden
  numbers this layer gives. Kernels start Glorot uniform, as
  in keras-lmu, biases at 0.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = ParallelLMU(16, 32, order=8, theta=100, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, M, N], [B, T, H]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, M, N], [B, H]
    >>> carry.shape, y.shape, y_next.shape
    ((2, 1, 8), (2, 10, 32), (2, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the output.
    out_features: `H`.
    memory_features: Number `M` of channels.
    state_features: Size `N` of the memory of each.
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int | None = None,
      *,
      memory_features: int = 1,
      order: int | None = None,
      theta: float = 784.0,
      discretization: str = 'zoh',
      memory_activation_fn: Callable[[jax.Array], jax.Array] = jax.nn.relu,
      activation_fn: Callable[[jax.Array], jax.Array] = jax.nn.relu,
      trainable: bool = False,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      hidden_features: Size `H` of the output; `D` if `None`.
      memory_features: Number `M` of channels of the memory.
      order: Size `N` of the memory of a channel; `H` if `None`.
      theta: Length of the window, in tokens.
      discretization: `zoh`, exact for a `u` that is constant within a token, or
        `euler`, which needs `theta` above `4 N`.
      memory_activation_fn: The nonlinearity `f_1`.
      activation_fn: The nonlinearity `f_2`.
      trainable: Whether `A` and `B` are parameters.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters; `A` and `B` are float32 at least.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If `order`, `memory_features`, `theta` or `discretization` is
        out of range.
    """
    if memory_features < 1:
      raise ValueError(
          f'`memory_features` must be at least 1, got {memory_features}.'
      )
    self.in_features = d = in_features
    self.hidden_features = self.out_features = h = hidden_features or d
    self.memory_features = m = memory_features
    self.state_features = n = h if order is None else order
    self.memory_activation_fn = memory_activation_fn
    self.activation_fn = activation_fn
    self.dtype = dtype
    self.A, self.B = legendre.memory_matrices(
        n, theta, discretization, trainable, base.state_dtype(param_dtype)
    )
    glorot = nnx.initializers.glorot_uniform(in_axis=1, out_axis=0)
    draw = lambda *shape: glorot(rngs.params(), shape, param_dtype)
    zeros = lambda n: jnp.zeros((n,), param_dtype)
    # One map of `m` and `x`, side by side.
    both = draw(h, m * n + d)
    self.W_u = nnx.Param(draw(m, d), axes=(None, 'embed'))
    self.b_u = nnx.Param(zeros(m), axes=(None,))
    self.W_m = nnx.Param(both[:, : m * n], axes=('hidden', 'inner'))
    self.W_x = nnx.Param(both[:, m * n :], axes=('hidden', 'embed'))
    self.b_h = nnx.Param(zeros(h), axes=('hidden',))

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(M, N)` of the state of one sequence."""
    return (self.memory_features, self.state_features)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    known = carry is not None
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    u, from_x = self._from_input(x)
    a, b = (matrix[...].astype(u.dtype) for matrix in (self.A, self.B))
    carry, from_m = ops.lti_scan(
        a, b, self._readout(u.dtype), u, carry if known else None, reset=reset,
        mask=mask,
    )
    return carry, self._output(from_x + from_m, x.dtype, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    u, from_x = self._from_input(x)
    m = carry if reset is None else base.select(reset, initial, carry)
    m = legendre.advance(m, self.A, self.B, u[..., None])
    carry = m if mask is None else base.select(mask, m, carry)
    from_m = jnp.einsum('bmn,mnh->bh', m, self._readout(u.dtype))
    return carry, self._output(from_x + from_m, x.dtype, mask)

  def _from_input(self, x):
    """`u` `[..., M]`, and what the output has of `x` `[..., H]`."""
    dtype = base.state_dtype(x.dtype)
    both = jnp.concatenate([self.W_u[...], self.W_x[...]]).astype(x.dtype)
    both = jnp.einsum('...d,od->...o', x, both, preferred_element_type=dtype)
    u = both[..., : self.memory_features] + self.b_u[...].astype(dtype)
    return self.memory_activation_fn(u), both[..., self.memory_features :]

  def _readout(self, dtype):
    """`W_m` `[M, N, H]`; in bfloat16 a chunk would not round as a step does."""
    shape = (self.memory_features, self.state_features, -1)
    return self.W_m[...].astype(dtype).T.reshape(shape)

  def _output(self, y, dtype, mask):
    y = self.activation_fn(y + self.b_h[...].astype(y.dtype))
    return base.masked(y.astype(dtype), mask)
