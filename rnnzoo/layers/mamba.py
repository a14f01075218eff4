"""Mamba (Gu & Dao, 2023), https://arxiv.org/abs/2312.00752."""

import math
from typing import Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import state_space


class MambaCarry(NamedTuple):
  """State of `Mamba`: last inputs `[B, K-1, H]`, and the state `[B, H, N]`."""

  conv: jax.Array
  ssm: jax.Array


class Mamba(base.RecurrentLayer):
  r"""A selective state space model (S6) with its convolution and its gate.

  .. math::
      (x'_t, z_t) &= W_{in} u_t \\
      x_t &= \mathrm{silu}(\mathrm{conv}(x')_t) \\
      (\delta_t, B_t, C_t) &= W_x x_t, \quad
      \Delta_t = \mathrm{softplus}(W_\delta \delta_t + b_\delta) \\
      h_t &= e^{\Delta_t A} \odot h_{t-1} + (\Delta_t \odot x_t) \otimes B_t,
      \quad A = -e^{A_{\log}} \\
      y_t &= W_{out} \bigl((h_t C_t + D \odot x_t)
             \odot \mathrm{silu}(z_t)\bigr)

  The step size, B and C depend on the token. As published, A is discretised
  exactly and B by the rule of Euler. The convolution is causal, with one filter
  of `K` taps a channel. The state is `H N + (K - 1) H` numbers a sequence
  (12288 + 2304 if `D` is 384). A token costs `3 D H + H (2 R + 2 N)`
  multiplications in matrices and about `6 H N` for the state. Whole sequences
  are computed in parallel by `ops.selective_scan`, which never stores `[B, T,
  H, N]`.

  This is the whole block of the paper. A model adds only a norm and a residual
  connection, and no MLP. The published models divide the initial `out_proj` by
  the square root of their depth: `num_layers`. They store the last K inputs of
  the convolution; the next token needs K - 1.

  Falcon Mamba (https://arxiv.org/abs/2410.05355) and Jamba
  (https://arxiv.org/abs/2403.19887) divide :math:`\delta_t`, B and C by the
  roots of their mean squares: `selection_norm`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = Mamba(16, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, carry.ssm.shape, y.shape
    ((2, 3, 32), (2, 32, 16), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Number `H` of channels, `int(D * expansion_factor)`.
    state_features: Size `N` of the state of a channel.
    out_features: `D`.
  """

  carry_tails = ('conv',)

  def __init__(
      self,
      in_features: int,
      *,
      state_features: int = 16,
      expansion_factor: float = 2.0,
      conv_kernel: int = 4,
      dt_rank: int | None = None,
      dt_min: float = 1e-3,
      dt_max: float = 0.1,
      dt_floor: float = 1e-4,
      use_conv_bias: bool = True,
      use_bias: bool = False,
      selection_norm: Literal['none', 'plain', 'scaled'] = 'none',
      selection_norm_epsilon: float = 1e-6,
      num_layers: int = 1,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      state_features: Size `N` of the state of a channel.
      expansion_factor: Channels per input feature.
      conv_kernel: Taps `K` of the convolution.
      dt_rank: Rank `R` of the map to step sizes; `ceil(D / 16)` if `None`.
      dt_min: Smallest initial step size.
      dt_max: Largest initial step size.
      dt_floor: Initial step sizes below are raised to it.
      use_conv_bias: Whether the convolution has a bias.
      use_bias: Whether the maps in and out have biases.
      selection_norm: The norm of the ranks, of B and of C: `none`; `plain`,
        RMSNorm without a parameter (Falcon Mamba); or `scaled`, RMSNorm with a
        scale each (Jamba).
      selection_norm_epsilon: Added to their mean squares.
      num_layers: Depth of the model; the initial `out_proj` is divided by its
        square root (twice the depth where there are MLPs).
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those of the
        state: `A_log`, `D` and the bias of `dt_proj`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size or a step size is out of range.
    """
    self.in_features = self.out_features = d = in_features
    self.hidden_features = h = int(in_features * expansion_factor)
    self.state_features = n = state_features
    self.conv_kernel = conv_kernel
    self.dt_rank = math.ceil(d / 16) if dt_rank is None else dt_rank
    self.dtype = dtype
    checking.check_sizes(
        state_features=n, conv_kernel=conv_kernel, dt_rank=self.dt_rank,
        num_layers=num_layers,
    )
    state_space.check_choice(
        'selection_norm', selection_norm, ('none', 'plain', 'scaled')
    )
    step_sizes = initializers.step_size_bias(dt_min, dt_max, dt_floor)

    def linear(fan_in, fan_out, axes, *, use_bias=use_bias, scale=1.0):
      init = initializers.uniform_fan_in(fan_in)
      return nnx.Linear(
          fan_in,
          fan_out,
          use_bias=use_bias,
          kernel_init=lambda *args: init(*args) * scale,
          bias_init=init,
          kernel_metadata=dict(axes=axes),
          bias_metadata=dict(axes=axes[1:]),
          param_dtype=param_dtype,
          rngs=rngs,
      )

    taps = initializers.uniform_fan_in(conv_kernel)
    # Two maps, [D] -> [2, H]: into the convolution, and the gate.
    self.in_proj = nnx.LinearGeneral(
        d,
        (2, h),
        use_bias=use_bias,
        kernel_init=initializers.uniform_fan_in(d),
        bias_init=initializers.uniform_fan_in(d),
        kernel_metadata=dict(axes=('embed', None, 'hidden')),
        bias_metadata=dict(axes=(None, 'hidden')),
        param_dtype=param_dtype,
        rngs=rngs,
    )
    self.conv = nnx.Param(
        taps(rngs.params(), (conv_kernel, h), param_dtype),
        axes=(None, 'hidden'),
    )
    if use_conv_bias:
      self.conv_bias = nnx.Param(
          taps(rngs.params(), (h,), param_dtype), axes=('hidden',)
      )
    else:
      self.conv_bias = None
    self.x_proj = linear(
        h, self.dt_rank + 2 * n, ('hidden', 'inner'), use_bias=False
    )
    if selection_norm == 'none':
      self.selection_norms = None
    else:
      self.selection_norms = nnx.List([
          common.HeadNorm(
              1, size, epsilon=selection_norm_epsilon, share=True,
              use_scale=selection_norm == 'scaled', param_dtype=param_dtype,
          )
          for size in (self.dt_rank, n, n)
      ])
    self.dt_proj = linear(
        self.dt_rank, h, ('inner', 'hidden'), use_bias=False
    )
    # Parameters of the decay are float32 at least, and have no weight decay.
    state_dtype = base.state_dtype(param_dtype)
    self.dt_bias = nnx.Param(
        step_sizes(rngs.params(), (h,), state_dtype),
        axes=('hidden',), recurrent=True,
    )
    rates = jnp.log(jnp.arange(1, n + 1, dtype=state_dtype))
    self.A_log = nnx.Param(
        jnp.tile(rates, (h, 1)), axes=('hidden', 'inner'), recurrent=True
    )
    self.D = nnx.Param(
        jnp.ones((h,), state_dtype), axes=('hidden',), recurrent=True
    )
    self.out_proj = linear(
        h, d, ('hidden', 'embed'), scale=1 / math.sqrt(num_layers)
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    h = self.hidden_features
    return base.carry_shape(
        MambaCarry,
        conv=(self.conv_kernel - 1, h),
        ssm=(h, self.state_features),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    u, z = common.project_each(self.in_proj, x)
    tail, u = ops.causal_conv1d(
        u, *self._filter(), carry.conv, reset=reset, mask=mask
    )
    u = jax.nn.silu(u)
    delta, b, c = self._selection(u)
    rates, skip = self._rates(delta.dtype)
    ssm, y = ops.selective_scan(
        u, delta, rates, b, c, carry.ssm, D=skip, z=z, reset=reset, mask=mask
    )
    y = base.masked(common.project(self.out_proj, y), mask)
    return MambaCarry(tail, ssm), y

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    u, z = common.project_each(self.in_proj, x)
    tail, u = ops.causal_conv1d_step(
        u, *self._filter(), carry.conv, reset=reset, mask=mask
    )
    u = jax.nn.silu(u)
    delta, b, c = self._selection(u)
    rates, skip = self._rates(delta.dtype)
    h = carry.ssm
    if reset is not None:
      h = base.select(reset, initial.ssm, h)
    wide = u.astype(delta.dtype)
    h = jnp.exp(delta[..., None] * rates) * h
    h = h + (delta * wide)[..., None] * b[:, None]
    y = (h * c[:, None]).sum(-1) + skip * wide
    y = (y * jax.nn.silu(z.astype(delta.dtype))).astype(x.dtype)
    y = base.masked(common.project(self.out_proj, y), mask)
    ssm = h if mask is None else base.select(mask, h, carry.ssm)
    return MambaCarry(tail, ssm), y

  def _filter(self):
    bias = self.conv_bias
    return self.conv[...], None if bias is None else bias[...]

  def _selection(self, u):
    """Maps `[..., H]` to step sizes `[..., H]`, B and C `[..., N]`."""
    dtype, rank = base.state_dtype(u.dtype), self.dt_rank
    ranks, b, c = jnp.split(
        common.project(self.x_proj, u, dtype),
        [rank, rank + self.state_features],
        axis=-1,
    )
    if self.selection_norms is not None:
      norms = self.selection_norms
      ranks, b, c = (norm(v) for norm, v in zip(norms, (ranks, b, c)))
    delta = common.project(self.dt_proj, ranks)
    return jax.nn.softplus(delta + self.dt_bias[...].astype(dtype)), b, c

  def _rates(self, dtype):
    """Returns A `[H, N]` and D `[H]`."""
    return -jnp.exp(self.A_log[...].astype(dtype)), self.D[...].astype(dtype)
