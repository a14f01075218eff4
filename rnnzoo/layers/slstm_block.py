"""The sLSTM block (Beck et al., 2024), https://arxiv.org/abs/2405.04517."""

from typing import Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import slstm


class _HeadwiseCell(slstm.Recurrence):
  """The cell of a block, whose gates read the inputs of their own head only.

  Its input is twice as wide as that of the block: first the part for i and f,
  then the part for z and o.
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
    conv: The last inputs of the convolution, `[B, K - 1, D]` in the compute
      dtype; `None` without a convolution.
    cell: An `slstm.SLSTMCarry`.
  """

  conv: Any
  cell: slstm.SLSTMCarry


class SLSTMBlock(base.RecurrentLayer):
  r"""The sLSTM block of xLSTM: a convolution, an sLSTM, a norm of each head.

  .. math::
      u_t &= \mathrm{SiLU}(\mathrm{conv}(x)_t) \\
      h_t &= \mathrm{sLSTM}(W_{i,f} u_t, W_{z,o} x_t) \\
      y_t &= \mathrm{GroupNorm}(h_t)

  The convolution is causal and separate for each channel. Every W is block
  diagonal, and the only bias is that of the cell. The norm is over the features
  of each head, with a scale but no bias. The rest of the block in the paper is
  part of the model here: `norm='layer'`, `mlp='geglu'` and an `mlp_factor` of 4
  / 3 (1.3 in the official code, rounded up to a multiple of 64 features).

  The state is `4 D` numbers a sequence and `(K - 1) D` inputs. The layer is
  sequential over time. A token costs `8 D D / heads + K D` multiplications;
  half of the first term is computed for all tokens at once.

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
      num_heads: Number of heads, a divisor of `D`.
      conv_kernel: Taps `K` of the convolution; 0 for no convolution and no
        SiLU.
      forget_gate: As for `SLSTM`.
      recurrent_init: As for `SLSTM`.
      bias_init: As for `SLSTM`.
      relative_depth: As for `SLSTM`.
      norm_epsilon: Added to the variances in the norm.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for the biases.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide `D`, a head has a single feature
        (its norm would always be 0), or an option is unknown.
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
    """Returns the next tail, and the input of the cell `[..., 2 D]`."""
    if not self.conv_kernel:
      return None, jnp.concatenate([x, x], axis=-1)
    tail, u = convolve(
        x, self.kernel[...], self.bias[...], tail, reset=reset, mask=mask
    )
    return tail, jnp.concatenate([jax.nn.silu(u), x], axis=-1)

  def _normed(self, h):
    heads = self.cell.R.shape[:2]
    return self.norm(h.reshape(h.shape[:-1] + heads)).reshape(h.shape)
