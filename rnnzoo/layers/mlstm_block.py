"""The block of xLSTM with an mLSTM (Beck et al., 2024).

https://arxiv.org/abs/2405.04517
"""

from typing import Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import matrix_memory


class MLSTMBlockCarry(NamedTuple):
  """State of an mLSTM block.

  Attributes:
    conv: The last inputs of the convolution, `[B, K - 1, H]` in the compute
      dtype; `None` without a convolution.
    memory: An `ops.MLSTMState`.
  """

  conv: Any
  memory: ops.MLSTMState


class MLSTMBlock(base.RecurrentLayer):
  r"""The mLSTM block of xLSTM: a memory twice as wide as the input.

  .. math::
      (u_t, z_t) &= W_{up} x_t, \quad
      c_t = \mathrm{SiLU}(\mathrm{conv}(u)_t) \\
      q_t &= W_q c_t, \quad k_t = W_k c_t, \quad v_t = W_v u_t \\
      (i_t, f_t) &= W_g [q_t, k_t, v_t] + b_g, \quad
      h_t = \mathrm{mLSTM}(q_t, k_t, v_t, i_t, f_t) \\
      y_t &= W_{down} \bigl((\mathrm{norm}(h_t) + s \odot c_t)
             \odot \mathrm{SiLU}(z_t)\bigr)

  with the memory of `MLSTM`; its output gate is :math:`z` here. The convolution
  is causal and separate for each channel. W_q, W_k and W_v are block diagonal,
  with blocks of `block_size` channels. The norm is over the features of each
  head, with a scale but no bias. `s` starts at 1.

  This is the whole block of the paper (figure 11). A model adds only a norm and
  a residual connection, and no MLP. The official code rounds `H` up to a
  multiple of 64. The published models divide the initial `down` by their depth:
  `num_layers`. Initial values are those of the official code.

  The state is `H d + H + heads` numbers a sequence, with `d = H / heads`, and
  `(K - 1) H` inputs. A token costs `3 D H + 3 H block_size + K H + 6 H heads`
  multiplications in maps, and about `2 (Q + 2 d) H` in chunks of `Q` tokens.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = MLSTMBlock(16, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, D]
    >>> carry.conv.shape, carry.memory.C.shape, y.shape
    ((2, 3, 32), (2, 4, 8, 8), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the values of the memory, `int(D *
      expansion_factor)`.
    out_features: `D`.
    num_heads: Number of heads.
  """

  forget_gate: Literal['sigmoid', 'exponential']

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int = 4,
      expansion_factor: float = 2.0,
      conv_kernel: int = 4,
      block_size: int = 4,
      forget_gate: Literal['sigmoid', 'exponential'] = 'sigmoid',
      norm_epsilon: float = 1e-5,
      epsilon: float = 1e-6,
      num_layers: int = 1,
      chunk_size: int = 64,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number of heads, a divisor of `H`.
      expansion_factor: `H` per input feature.
      conv_kernel: Taps `K` of the convolution; 0 for no convolution and no
        SiLU.
      block_size: Channels in a block of W_q, W_k and W_v, a divisor of `H`.
      forget_gate: `sigmoid` or `exponential`; the paper allows both.
      norm_epsilon: Added to the variances in the norm.
      epsilon: Added to the divisor of the memory, see `ops.mlstm`.
      num_layers: Depth of the model, by which the initial `down` is divided.
      chunk_size: Tokens `Q` that are computed at once, a power of two.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for the biases of
        `i` and `f`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size is out of range, a head has a single feature (its
        norm would always be 0), or an option is unknown.
    """
    h = int(in_features * expansion_factor)
    if num_heads < 1 or h % num_heads or h // num_heads < 2:
      raise ValueError(
          f'`num_heads` must divide the {h} hidden features into parts of two '
          f'or more, got {num_heads}.'
      )
    if block_size < 1 or h % block_size:
      raise ValueError(
          f'`block_size` must divide the {h} hidden features, got {block_size}.'
      )
    if conv_kernel < 0:
      raise ValueError(f'`conv_kernel` must be 0 or more, got {conv_kernel}.')
    matrix_memory.check_forget_gate(forget_gate)
    matrix_memory.check_depth(num_layers)
    self.in_features = self.out_features = in_features
    self.hidden_features, self.num_heads = h, num_heads
    self.conv_kernel = conv_kernel
    self.forget_gate, self.epsilon = forget_gate, epsilon
    self.chunk_size, self.dtype = chunk_size, dtype
    small = initializers.small(in_features)
    self.up = nnx.LinearGeneral(
        in_features,
        (2, h),
        use_bias=False,
        kernel_init=small,
        kernel_metadata=dict(axes=('embed', None, 'hidden')),
        param_dtype=param_dtype,
        rngs=rngs,
    )
    if conv_kernel:
      taps = initializers.uniform_fan_in(conv_kernel)
      self.kernel = nnx.Param(
          taps(rngs.params(), (conv_kernel, h), param_dtype),
          axes=(None, 'hidden'),
      )
      self.bias = nnx.Param(
          taps(rngs.params(), (h,), param_dtype), axes=('hidden',)
      )
    blocks = h // block_size, block_size, block_size
    # The variance is 2 / (5 D), with the width of the input, not of a block.
    self.query, self.key, self.value = (
        nnx.Param(
            small(rngs.params(), blocks, param_dtype),
            axes=('hidden', None, None),
        )
        for _ in range(3)
    )
    self.gates = matrix_memory.gate_map(
        3 * h, num_heads, None, param_dtype, rngs
    )
    self.norm = common.HeadNorm(
        num_heads, h // num_heads, kind='layer', epsilon=norm_epsilon,
        param_dtype=param_dtype,
    )
    self.skip = nnx.Param(jnp.ones((h,), param_dtype), axes=('hidden',))
    self.down = matrix_memory.linear(
        h, in_features, ('hidden', 'embed'), use_bias=False,
        kernel_init=initializers.wang(in_features, num_layers),
        param_dtype=param_dtype, rngs=rngs,
    )

  def initialize_carry(self, batch_size: int, dtype=None) -> MLSTMBlockCarry:
    """Returns the state before the first token: zeros."""
    dtype = jnp.dtype(dtype or self.dtype or jnp.float32)
    conv, size = None, self.hidden_features // self.num_heads
    if self.conv_kernel:
      conv = jnp.zeros(
          (batch_size, self.conv_kernel - 1, self.hidden_features), dtype
      )
    return MLSTMBlockCarry(conv, ops.empty_mlstm_state(
        batch_size, self.num_heads, size, size, base.state_dtype(dtype)
    ))

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    u, z = common.project_each(self.up, x)
    conv, c = self._convolved(ops.causal_conv1d, u, carry.conv, reset, mask)
    memory, h = ops.mlstm(
        *self._operands(u, c), state=carry.memory, eps=self.epsilon,
        forget_gate=self.forget_gate, reset=reset, mask=mask,
        chunk_size=self.chunk_size,
    )
    return MLSTMBlockCarry(conv, memory), self._readout(h, c, z, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    u, z = common.project_each(self.up, x)
    conv, c = self._convolved(
        ops.causal_conv1d_step, u, carry.conv, reset, mask
    )
    memory, h = matrix_memory.memory_step(
        self._operands(u, c), carry.memory, initial.memory, reset, mask,
        eps=self.epsilon, forget_gate=self.forget_gate,
    )
    return MLSTMBlockCarry(conv, memory), self._readout(h, c, z, mask)

  def _convolved(self, convolve, u, tail, reset, mask):
    """Returns the next tail, and the inputs of keys and queries `[..., H]`."""
    if not self.conv_kernel:
      return None, u
    tail, c = convolve(
        u, self.kernel[...], self.bias[...], tail, reset=reset, mask=mask
    )
    return tail, jax.nn.silu(c)

  def _operands(self, u, c):
    """Returns the arguments of `ops.mlstm`."""
    q = common.block_diagonal(c, self.query[...])
    k = common.block_diagonal(c, self.key[...])
    v = common.block_diagonal(u, self.value[...])
    gates = matrix_memory.gates_of(
        self.gates, jnp.concatenate([q, k, v], axis=-1)
    )
    q, k, v = (matrix_memory.split_heads(w, self.num_heads) for w in (q, k, v))
    return q, k, v, *gates

  def _readout(self, h, c, z, mask):
    wide = base.state_dtype(c.dtype)
    h = self.norm(h.astype(wide)).reshape(c.shape)
    y = (h + self.skip[...] * c.astype(wide)) * jax.nn.silu(z.astype(wide))
    return base.masked(common.project(self.down, y.astype(c.dtype)), mask)
