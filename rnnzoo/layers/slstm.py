"""sLSTM and its block (Beck et al., 2024), https://arxiv.org/abs/2405.04517."""

from typing import Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import recurrences

_LOG_FORGET = dict(sigmoid=jax.nn.log_sigmoid, exponential=lambda f: f)
_RECURRENT_INITS = ('zeros', 'uniform')
_BIAS_INITS = ('powerlaw', 'linspace')


class SLSTMCarry(NamedTuple):
  """State of an sLSTM, all `[B, H]` and float32 at least.

  Attributes:
    c: The cell, divided by `exp(m)`.
    n: The normaliser, divided likewise; both are 0 before the first token.
    m: The logarithm that keeps the gates in range; minus infinity before the
      first token.
    h: The output.
  """

  c: jax.Array
  n: jax.Array
  m: jax.Array
  h: jax.Array


class _Recurrence(recurrences.RecurrentCell):
  """The recurrence of sLSTM; a subclass maps inputs to `[..., 4, H]`."""

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
    # Gates in the order i, f, z, o. The bias of f sets how fast is forgotten.
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

  def update(self, carry, projected, dtype):
    c, n, m, h = carry
    heads, size = self.R.shape[:2]
    recurrent = common.block_diagonal(
        h.astype(dtype), self.R[...].reshape(heads, size, -1), dtype=h.dtype
    )
    recurrent = recurrent.reshape(h.shape[0], heads, 4, size).swapaxes(1, 2)
    gates = projected + recurrent.reshape(projected.shape)
    i, f, z, o = (gates[:, k] for k in range(4))
    kept = _LOG_FORGET[self.forget_gate](f) + m
    m = jnp.maximum(kept, i)
    i, f = jnp.exp(i - m), jnp.exp(kept - m)
    c = f * c + i * jnp.tanh(z)
    n = f * n + i
    h = jax.nn.sigmoid(o) * c / n
    return SLSTMCarry(c, n, m, h), h


class SLSTM(_Recurrence):
  r"""An LSTM with exponential gates, a normaliser, and heads.

  .. math::
      \tilde z_t &= W_z x_t + R_z h_{t-1} + b_z, \quad
      \text{likewise } \tilde i_t, \tilde f_t, \tilde o_t \\
      c_t &= f_t \odot c_{t-1} + i_t \odot \tanh(\tilde z_t), \quad
      i_t = \exp(\tilde i_t) \\
      n_t &= f_t \odot n_{t-1} + i_t, \quad
      f_t = \sigma(\tilde f_t) \text{ or } \exp(\tilde f_t) \\
      h_t &= \sigma(\tilde o_t) \odot c_t / n_t

  R is block-diagonal: units see the last output of their own head only. `c` and
  `n` are kept divided by :math:`e^{m_t}`, :math:`m_t = \max(\log f_t + m_{t-1},
  \tilde i_t)`, which changes no output and keeps every exponential at most 1.
  Here :math:`m_0 = -\infty`, the logarithm of an empty state; the official cell
  starts at 0, makes an exception of the first token, and so has the same
  numbers ever after.

  The state is `4 H` numbers a sequence. Sequential over time; cost a token:
  `4 H (D + H / heads)` multiplications, of which `4 H D` are done for all at
  once.

  The paper allows either forget gate; the official code uses the sigmoid. The
  initial values are those of the official code: R is 0, and the bias of the
  forget gate falls from 5 to -7 over a head, later in deeper layers.

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
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      hidden_features: Size `H` of the cell; `D` if `None`.
      num_heads: Number of heads, which divides `H`.
      forget_gate: `sigmoid` or `exponential`.
      recurrent_init: Initial R: `zeros`, or `uniform` within `1 / sqrt(H)`.
      bias_init: Initial bias of the forget gate: `powerlaw`, or `linspace` from
        3 to 6 over a head.
      relative_depth: Where the layer is in a stack, 0 for the first and 1 for
        the last: the power law's exponent is `0.3 + 1.3 * relative_depth`.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for the biases.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide `H`, or an option is unknown.
    """
    self.in_features = in_features
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


class _HeadwiseCell(_Recurrence):
  """The cell of a block, whose gates see their own head's inputs only.

  Its input is twice as wide as the block's: what i and f read, and what z and o
  read.
  """

  def __init__(self, features, *args):
    super().__init__(features, *args)
    param_dtype, rngs = args[-2:]
    self.in_features = 2 * features
    size = features // self.num_heads
    shape = 4, self.num_heads, size, size
    self.W = nnx.Param(
        initializers.small(features)(rngs.params(), shape, param_dtype),
        axes=(None, 'heads', 'inner', None),
    )

  def project(self, x):
    dtype = base.state_dtype(x.dtype)
    u, x = jnp.split(x, 2, axis=-1)
    y = [
        common.block_diagonal(read, self.W[gate], dtype=dtype)
        for gate, read in enumerate((u, u, x, x))
    ]
    return jnp.stack(y, axis=-2) + self.b[...].astype(dtype)


class SLSTMBlockCarry(NamedTuple):
  """State of an sLSTM block.

  Attributes:
    conv: Its convolution's last inputs, `[B, K - 1, D]` in the compute dtype;
      `None` without a convolution.
    cell: An `SLSTMCarry`.
  """

  conv: Any
  cell: SLSTMCarry


class SLSTMBlock(base.RecurrentLayer):
  r"""An sLSTM as xLSTM has it: a convolution before, a norm of heads after.

  .. math::
      u_t &= \mathrm{SiLU}(\mathrm{conv}(x)_t) \\
      h_t &= \mathrm{sLSTM}(W_{i,f} u_t, W_{z,o} x_t) \\
      y_t &= \mathrm{GroupNorm}(h_t)

  The convolution is causal and sees one channel at a time; every W is
  block-diagonal, without a bias beside the cell's; the norm takes each head on
  its own and has a scale but no bias. The rest of the paper's block is the
  model's: `norm='layer'`, `mlp='geglu'` and an `mlp_factor` of 4 / 3 (in the
  official code 1.3, and then rounded up to a multiple of 64 features).

  The state is `4 D` numbers a sequence and `(K - 1) D` inputs. Sequential over
  time; cost a token: `8 D D / heads + K D` multiplications, half of the former
  done for all at once.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = SLSTMBlock(16, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, D]
    >>> carry.conv.shape, carry.cell.c.shape, y.shape
    ((2, 3, 16), (2, 16), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: `D`.
    out_features: `D`.
    cell: The sLSTM.
  """

  gathers_time = True

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int = 4,
      conv_kernel: int = 4,
      forget_gate: Literal['sigmoid', 'exponential'] = 'sigmoid',
      recurrent_init: Literal['zeros', 'uniform'] = 'zeros',
      bias_init: Literal['powerlaw', 'linspace'] = 'powerlaw',
      relative_depth: float = 0.0,
      norm_epsilon: float = 1e-5,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number of heads, which divides `D`.
      conv_kernel: Width `K` of the convolution; 0 for none, and then no SiLU.
      forget_gate: As for `SLSTM`.
      recurrent_init: As for `SLSTM`.
      bias_init: As for `SLSTM`.
      relative_depth: As for `SLSTM`.
      norm_epsilon: Added to the variances in the norm.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for the biases.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide `D` or have one feature, which a
        norm would erase, or if an option is unknown.
    """
    if conv_kernel < 0:
      raise ValueError(f'`conv_kernel` must be 0 or more, got {conv_kernel}.')
    if num_heads >= in_features:
      raise ValueError(
          f'`num_heads` must leave a head two of {in_features} features or '
          f'more, got {num_heads}.'
      )
    self.in_features = self.hidden_features = self.out_features = in_features
    self.conv_kernel = conv_kernel
    self.dtype = dtype
    self.cell = _HeadwiseCell(
        in_features, num_heads, forget_gate, recurrent_init, bias_init,
        relative_depth, dtype, param_dtype, rngs,
    )
    if conv_kernel:
      init = initializers.uniform_fan_in(conv_kernel)
      self.kernel = nnx.Param(
          init(rngs.params(), (conv_kernel, in_features), param_dtype),
          axes=(None, 'hidden'),
      )
      self.bias = nnx.Param(
          init(rngs.params(), (in_features,), param_dtype), axes=('hidden',)
      )
    self.norm = common.HeadNorm(
        num_heads, in_features // num_heads, kind='layer', epsilon=norm_epsilon,
        param_dtype=param_dtype,
    )

  def initialize_carry(self, batch_size: int, dtype=None) -> SLSTMBlockCarry:
    """Returns the state before the first token."""
    dtype = jnp.dtype(dtype or self.dtype or jnp.float32)
    conv = None
    if self.conv_kernel:
      shape = (batch_size, self.conv_kernel - 1, self.in_features)
      conv = jnp.zeros(shape, dtype)
    return SLSTMBlockCarry(conv, self.cell.initialize_carry(batch_size, dtype))

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    conv, u = self._convolved(ops.causal_conv1d, x, carry.conv, reset, mask)
    cell, h = self.cell(u, carry.cell, reset=reset, mask=mask)
    return SLSTMBlockCarry(conv, cell), base.masked(self._normed(h), mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask, step=True)
    conv, u = self._convolved(
        ops.causal_conv1d_step, x, carry.conv, reset, mask
    )
    cell, h = self.cell.step(carry.cell, u, reset=reset, mask=mask)
    return SLSTMBlockCarry(conv, cell), base.masked(self._normed(h), mask)

  def _convolved(self, convolve, x, tail, reset, mask):
    """The next tail, and the input of the cell `[..., 2 D]`."""
    if not self.conv_kernel:
      return None, jnp.concatenate([x, x], axis=-1)
    tail, u = convolve(
        x, self.kernel[...], self.bias[...], tail, reset=reset, mask=mask
    )
    return tail, jnp.concatenate([jax.nn.silu(u), x], axis=-1)

  def _normed(self, h):
    heads = self.cell.R.shape[:2]
    return self.norm(h.reshape(h.shape[:-1] + heads)).reshape(h.shape)
