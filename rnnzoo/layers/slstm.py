"""sLSTM (Beck et al., 2024), https://arxiv.org/abs/2405.04517."""

from typing import Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import parallel_cells

_LOG_FORGET = dict(sigmoid=jax.nn.log_sigmoid, exponential=lambda f: f)
_RECURRENT_INITS = ('zeros', 'uniform')
_BIAS_INITS = ('powerlaw', 'linspace')


class SLSTMCarry(NamedTuple):
  """State of an sLSTM, all `[B, H]` and float32 at least.

  Attributes:
    c: The cell, divided by `exp(m)`.
    n: The normaliser, divided by `exp(m)`. Both are 0 before the first token.
    m: The logarithm that keeps the gates in range, minus infinity before the
      first token.
    h: The output.
  """

  c: jax.Array
  n: jax.Array
  m: jax.Array
  h: jax.Array


class Recurrence(parallel_cells.MixingCell):
  """The recurrence of sLSTM. A subclass maps inputs to `[..., 4, H]`."""

  def __init__(
      self,
      features,
      num_heads,
      forget_gate,
      recurrent_init,
      bias_init,
      relative_depth,
      dtype,
      param_dtype,
      rngs,
  ):
    if num_heads < 1 or features % num_heads:
      raise ValueError(
          f'`num_heads` must divide the {features} features, got {num_heads}.'
      )
    for name, value, choices in (
        ('forget_gate', forget_gate, _LOG_FORGET),
        ('recurrent_init', recurrent_init, _RECURRENT_INITS),
        ('bias_init', bias_init, _BIAS_INITS),
    ):
      if value not in choices:
        raise ValueError(
            f'`{name}` must be one of {list(choices)}, got {value!r}.'
        )
    if not 0 <= relative_depth <= 1:
      raise ValueError(
          f'`relative_depth` must be in [0, 1], got {relative_depth}.'
      )
    self.hidden_features = self.out_features = features
    self.num_heads = num_heads
    self.forget_gate = forget_gate
    self.dtype = dtype
    size = features // num_heads
    shape = (num_heads, size, 4, size)
    if recurrent_init == 'zeros':
      recurrent = jnp.zeros(shape, param_dtype)
    else:
      init = initializers.uniform_fan_in(features)
      recurrent = init(rngs.params(), shape, param_dtype)
    # Gates in the order i, f, z, o. The bias of f sets the speed of forgetting.
    self.R = nnx.Param(
        recurrent, axes=('heads', 'inner', None, None), recurrent=True
    )
    if bias_init == 'linspace':
      forget_bias = jnp.linspace(3, 6, size)
    else:
      place = jnp.arange(size) / max(size - 1, 1)
      forget_bias = 5 - 12 * place ** (0.3 + 1.3 * relative_depth)
    forget_bias = jnp.tile(forget_bias, num_heads)
    zeros = jnp.zeros_like(forget_bias)
    self.b = nnx.Param(
        jnp.stack([zeros, forget_bias, zeros, zeros]).astype(
            base.state_dtype(param_dtype)
        ),
        axes=(None, 'hidden'),
        recurrent=True,
    )

  def initialize_carry(self, batch_size: int, dtype=None) -> SLSTMCarry:
    """Returns the state before the first token: 0, and `m` of -infinity."""
    dtype = base.state_dtype(dtype or self.dtype)
    full = lambda u: jnp.full((batch_size, self.hidden_features), u, dtype)
    return SLSTMCarry(c=full(0), n=full(0), m=full(-jnp.inf), h=full(0))

  def mix(self, h, dtype):
    heads, size = self.R.shape[:2]
    mixed = common.block_diagonal(
        h.astype(dtype), self.R[...].reshape(heads, size, -1), dtype=h.dtype
    )
    mixed = mixed.reshape(h.shape[0], heads, 4, size).swapaxes(1, 2)
    return mixed.reshape(h.shape[0], 4, heads * size)

  def mix_diagonal(self):
    slopes = jnp.diagonal(self.R[...], axis1=1, axis2=3)  # [heads, 4, size]
    return slopes.swapaxes(0, 1).reshape(4, -1)

  def advance(self, carry, projected, mixed):
    c, n, m, _ = carry
    gates = projected + mixed
    i, f, z, o = (gates[:, k] for k in range(4))
    kept = _LOG_FORGET[self.forget_gate](f) + m
    m = jnp.maximum(kept, i)
    i, f = jnp.exp(i - m), jnp.exp(kept - m)
    c = f * c + i * jnp.tanh(z)
    n = f * n + i
    h = jax.nn.sigmoid(o) * c / n
    return SLSTMCarry(c, n, m, h), h


class SLSTM(Recurrence):
  r"""An LSTM with exponential gates, a normaliser, and heads.

  .. math::
      \tilde z_t &= W_z x_t + R_z h_{t-1} + b_z, \quad
      \text{likewise } \tilde i_t, \tilde f_t, \tilde o_t \\
      c_t &= f_t \odot c_{t-1} + i_t \odot \tanh(\tilde z_t), \quad
      i_t = \exp(\tilde i_t) \\
      n_t &= f_t \odot n_{t-1} + i_t, \quad
      f_t = \sigma(\tilde f_t) \text{ or } \exp(\tilde f_t) \\
      h_t &= \sigma(\tilde o_t) \odot c_t / n_t

  R is block diagonal: a unit reads the last outputs of its own head only. `c`
  and `n` are stored divided by :math:`e^{m_t}`, :math:`m_t = \max(\log f_t +
  m_{t-1}, \tilde i_t)`, which changes no output and keeps every exponential at
  most 1. Here :math:`m_0 = -\infty`, the logarithm of an empty state. The
  official cell starts at 0 and treats the first token separately, which gives
  the same numbers.

  The state is `4 H` numbers a sequence. The layer is sequential over time, or
  iterates over all tokens at once with `solver='newton'`. A token costs `4 H (D
  + H / heads)` multiplications, of which `4 H D` are computed for all tokens at
  once.

  The paper allows both forget gates; the official code uses the sigmoid. The
  initial values are those of the official code: R is 0, and the bias of the
  forget gate falls from 5 to -7 over the units of a head, later in deeper
  layers.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = SLSTM(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, H]
    >>> carry.c.shape, y.shape
    ((2, 32), (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the cell and of the output.
    out_features: `H`.
    num_heads: Number of blocks of R.
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int | None = None,
      *,
      num_heads: int = 4,
      forget_gate: Literal['sigmoid', 'exponential'] = 'sigmoid',
      recurrent_init: Literal['zeros', 'uniform'] = 'zeros',
      bias_init: Literal['powerlaw', 'linspace'] = 'powerlaw',
      relative_depth: float = 0.0,
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
      num_heads: Number of heads, a divisor of `H`.
      forget_gate: `sigmoid` or `exponential`.
      recurrent_init: Initial R: `zeros`, or `uniform` within `1 / sqrt(H)`.
      bias_init: Initial bias of the forget gate: `powerlaw`, or `linspace` from
        3 to 6 over a head.
      relative_depth: The place of the layer in a stack, from 0 for the first to
        1 for the last. The exponent of the power law is `0.3 + 1.3 *
        relative_depth`.
      solver: `sequential`, one token after the other, or `newton`, all tokens
        at once by `ops.newton_scan`.
      newton_iterations: The number of iterations of Newton's method; as many as
        needed if `None`.
      newton_max_slope: Entries of its Jacobian are cut to this size: 1 damps
        the method where it diverges. They are not cut if `None`.
      newton_strict: Whether a solution that misses its tolerance is an error,
        not a warning. There is neither inside `jax.jit`.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for the biases.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide `H`, or an option is unknown.
    """
    self.in_features = in_features
    self.set_solver(
        solver, newton_iterations, newton_max_slope, newton_strict
    )
    super().__init__(
        hidden_features or in_features, num_heads, forget_gate, recurrent_init,
        bias_init, relative_depth, dtype, param_dtype, rngs,
    )
    shape = in_features, 4, self.hidden_features
    self.W = nnx.Param(
        initializers.small(in_features)(rngs.params(), shape, param_dtype),
        axes=('embed', None, 'hidden'),
    )

  def project(self, x):
    dtype = base.state_dtype(x.dtype)
    y = jnp.einsum(
        '...d,dgh->...gh', x, self.W[...].astype(x.dtype),
        preferred_element_type=dtype,
    )
    return y + self.b[...].astype(dtype)
