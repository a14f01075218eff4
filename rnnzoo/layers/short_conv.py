"""The gated short convolution of LFM2 (Liquid AI, 2025).

https://arxiv.org/abs/2511.23404
"""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import linear_maps


class ShortConvCarry(NamedTuple):
  """State of `ShortConv`.

  Attributes:
    conv: The last products `b * u`, `[B, K-1, D]` in the compute dtype.
  """

  conv: jax.Array


class ShortConv(base.RecurrentLayer):
  r"""A short causal convolution between two gates.

  .. math::
      b_t, g_t, u_t &= W_b x_t, W_g x_t, W_u x_t \\
      c_t &= \sum_{s=0}^{K-1} w_{K-1-s} \odot b_{t-s} \odot u_{t-s} \\
      y_t &= W_o (g_t \odot c_t)

  Nothing is squashed: the gates are plain products. A token sees the `K - 1`
  tokens before it, so the layer stands between layers that see further, as
  between those of attention in LFM2.

  The state is the last `K - 1` products `b * u`, `(K - 1) D` numbers a sequence
  in the compute dtype. A token costs `4 D^2 + K D` multiplications.

  Maps and filters start as in PyTorch.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = ShortConv(16, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, y.shape
    ((2, 2, 16), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    conv_kernel: Taps `K` of the convolution.
  """

  carry_tails = ('conv',)

  def __init__(
      self,
      in_features: int,
      *,
      conv_kernel: int = 3,
      use_bias: bool = False,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      conv_kernel: Taps `K` of the convolution.
      use_bias: Whether the maps and the convolution have biases.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If `conv_kernel` is below 1.
    """
    if conv_kernel < 1:
      raise ValueError(f'`conv_kernel` must be at least 1, got {conv_kernel}.')
    self.in_features = self.out_features = d = in_features
    self.conv_kernel = conv_kernel
    self.dtype = dtype
    init = initializers.uniform_fan_in(d)
    # [D] -> [3, D]: b, g, u.
    self.input = nnx.LinearGeneral(
        d,
        (3, d),
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        kernel_metadata=dict(axes=('embed', None, 'hidden')),
        bias_metadata=dict(axes=(None, 'hidden')),
        param_dtype=param_dtype,
        rngs=rngs,
    )
    taps = lambda *shape: initializers.uniform_fan_in(conv_kernel)(
        rngs.params(), shape, param_dtype
    )
    self.conv = nnx.Param(taps(conv_kernel, d), axes=(None, 'hidden'))
    if use_bias:
      self.conv_bias = nnx.Param(taps(d), axes=('hidden',))
    else:
      self.conv_bias = None
    self.output = linear_maps.output_map(d, d, use_bias, param_dtype, rngs)

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    return base.carry_shape(
        ShortConvCarry, conv=(self.conv_kernel - 1, self.in_features)
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    return self._run(ops.causal_conv1d, x, carry, reset, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask, step=True)
    return self._run(ops.causal_conv1d_step, x, carry, reset, mask)

  def _run(self, convolve, x, carry, reset, mask):
    b, g, u = common.project_each(self.input, x)
    bias = None if self.conv_bias is None else self.conv_bias[...]
    tail, c = convolve(
        b * u, self.conv[...], bias, carry.conv, reset=reset, mask=mask
    )
    y = common.project(self.output, g * c)
    return ShortConvCarry(tail), base.masked(y, mask)
