"""The recurrent block of Griffin and Hawk (De et al., 2024).

https://arxiv.org/abs/2402.19427
"""

from typing import Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import cg_lru
from rnnzoo.layers import common
from rnnzoo.layers import rg_lru


class GriffinCarry(NamedTuple):
  """State of a Griffin block.

  Attributes:
    conv: The last inputs of the convolution `[B, K - 1, H]`, compute dtype.
    recurrent: State of the recurrence.
  """

  conv: jax.Array
  recurrent: rg_lru.RGLRUCarry


class GriffinBlock(base.RecurrentLayer):
  r"""A short convolution and an RG-LRU, gated by a second branch.

  .. math::
      u_t &= \mathrm{RG\text{-}LRU}(\mathrm{Conv1D}_4(W_x x_t + b_x)) \\
      y_t &= W_o\,(u_t \odot \mathrm{GELU}(W_y x_t + b_y)) + b_o

  The convolution is causal and depthwise, with a bias and without activation;
  GELU is the tanh approximation. In Hawk and Griffin, the block is followed by
  a gated MLP, and both have a residual connection with RMSNorm
  (`models.ModelConfig`: `norm='rms'`, `mlp='geglu'`, `mlp_factor=3`). Hawk
  consists of this block only; in Griffin every third one is local attention
  instead.

  The state is `H` numbers and a flag, and `3 H` past inputs a sequence. A token
  costs `3 D H + 2 H^2 / G + 4 H` multiplications.

  Dense maps start with variance 1 / fan-in, and the last one with
  `output_scale` times that; the published models set it to 2 / `num_layers`.
  The convolution starts with variance 0.01 / 4, and biases are 0.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = GriffinBlock(12, 16, num_heads=4, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 12))                     # [B, T, D]
    >>> carry, y = layer(x)
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, carry.recurrent.h.shape, y.shape
    ((2, 3, 16), (2, 16), (2, 10, 12))

  Attributes:
    in_features: Size `D` of an input and of an output.
    hidden_features: Size `H` of the recurrence, `D_RNN` in the paper.
    out_features: `D`.
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int | None = None,
      *,
      recurrence: Literal['rg_lru', 'cg_lru'] = 'rg_lru',
      num_heads: int | None = None,
      initialization: rg_lru.Initialization = 'paper',
      conv_kernel: int = 4,
      output_scale: float = 1.0,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the block.

    Args:
      in_features: Size `D` of an input.
      hidden_features: Size `H` of the recurrence; if `None`, `4 D / 3` rounded
        up to a multiple of 16 (the paper: about `4 D / 3`; RecurrentGemma:
        `D`).
      recurrence: `rg_lru`, or its complex variant `cg_lru`.
      num_heads: Number of blocks of the recurrence, see `RGLRU`.
      initialization: Initial values of the recurrence, see `RGLRU`.
      conv_kernel: Width `K` of the convolution.
      output_scale: Initial variance of the output map, times its fan-in.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for decays.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the recurrence is unknown, the convolution has no taps, or
        the sizes do not fit the recurrence.
    """
    recurrences = dict(rg_lru=rg_lru.RGLRU, cg_lru=cg_lru.CGLRU)
    if recurrence not in recurrences:
      raise ValueError(
          f'`recurrence` must be one of {list(recurrences)}, got '
          f'{recurrence!r}.'
      )
    if conv_kernel < 1:
      raise ValueError(f'`conv_kernel` must be positive, got {conv_kernel}.')
    if hidden_features is None:
      hidden_features = 16 * -(-in_features // 12)
    self.in_features = self.out_features = d = in_features
    self.hidden_features = h = hidden_features
    self.dtype = dtype
    into, back = ('embed', 'hidden'), ('hidden', 'embed')
    self.linear_y = _linear(d, h, 1.0, into, param_dtype, rngs)
    self.linear_x = _linear(d, h, 1.0, into, param_dtype, rngs)
    self.linear_out = _linear(h, d, output_scale, back, param_dtype, rngs)
    normal = jax.random.normal(rngs.params(), (conv_kernel, h), param_dtype)
    self.conv_kernel = nnx.Param(
        normal * (0.01 / conv_kernel) ** 0.5, axes=(None, 'hidden')
    )
    self.conv_bias = nnx.Param(jnp.zeros((h,), param_dtype), axes=('hidden',))
    self.recurrent = recurrences[recurrence](
        h, num_heads=num_heads, initialization=initialization,
        param_dtype=param_dtype, rngs=rngs,
    )

  def initialize_carry(self, batch_size: int, dtype=None) -> GriffinCarry:
    """Returns the carry before the first token."""
    dtype = jnp.dtype(dtype or self.dtype or jnp.float32)
    taps, features = self.conv_kernel[...].shape
    return GriffinCarry(
        conv=jnp.zeros((batch_size, taps - 1, features), dtype),
        recurrent=self.recurrent.initialize_carry(batch_size, dtype),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    return self._run(ops.causal_conv1d, self.recurrent, x, carry, reset, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask, step=True)
    recur = lambda u, carry, **flags: self.recurrent.step(carry, u, **flags)
    return self._run(ops.causal_conv1d_step, recur, x, carry, reset, mask)

  def _run(self, convolve, recur, x, carry, reset, mask):
    flags = dict(reset=reset, mask=mask)
    u = common.project(self.linear_x, x)
    conv, u = convolve(
        u, self.conv_kernel[...], self.conv_bias[...], carry.conv, **flags
    )
    recurrent, u = recur(u, carry.recurrent, **flags)
    u = u * jax.nn.gelu(common.project(self.linear_y, x))
    y = base.masked(common.project(self.linear_out, u), mask)
    return GriffinCarry(conv, recurrent), y


def _linear(n, m, scale, axes, param_dtype, rngs):
  return nnx.Linear(
      n,
      m,
      kernel_init=nnx.initializers.variance_scaling(scale, 'fan_in', 'normal'),
      kernel_metadata=dict(axes=axes),
      bias_metadata=dict(axes=axes[1:]),
      param_dtype=param_dtype,
      rngs=rngs,
  )
