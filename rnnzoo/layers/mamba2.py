"""Mamba-2 (Dao & Gu, 2024), https://arxiv.org/abs/2405.21060."""

import math
from typing import Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.layers import initializers

OUTPUT_NORMS = ('after_gate', 'before_gate', 'none')


class Mamba2Carry(NamedTuple):
  """State of `Mamba2`.

  Attributes:
    conv: The last inputs of the convolution over x, `[B, K-1, H P]`.
    conv_bc: The last inputs of the convolution over B and C, `[B, K-1, 2 G N]`.
    ssm: The state `[B, H, N, P]`, float32 at least. That of `LogLinearMamba2`
      has levels, an `ops.LevelState`.
  """

  conv: jax.Array
  conv_bc: jax.Array
  ssm: Any


class Mamba2(base.RecurrentLayer):
  r"""A selective state space model with one decay a head (SSD).

  .. math::
      (z_t, x'_t, B'_t, C'_t, \delta_t) &= W_{in} u_t \\
      (x_t, B_t, C_t) &= \mathrm{silu}(\mathrm{conv}(x', B', C')_t), \quad
      \Delta_t = \mathrm{softplus}(\delta_t + b_\delta) \\
      S_t &= e^{\Delta_t A} S_{t-1} + B_t (\Delta_t x_t)^\top,
      \quad A = -e^{A_{\log}} \\
      y_t &= W_{out}\, \mathrm{norm}\bigl((S_t^\top C_t + D x_t)
             \odot \mathrm{silu}(z_t)\bigr)

  for every head of `P` features. :math:`\Delta_t`, A and D are one number a
  head; B and C are shared by the heads of a group. The norm divides by the root
  of the mean square of the features of each group. The state is `H N P + (K -
  1) (H P + 2 G N)` numbers a sequence (196608 + 5376 if `D` is 768); it is the
  transpose of that in the published code. A token costs `D (3 H P + 2 G N + H)`
  multiplications in matrices, `2 H N P` for the state and, in parallel, about
  `Q (G N + H P)` within a chunk of `Q` tokens. Whole sequences are matrix
  products in chunks: `ops.linear_attention` with C as queries, B as keys and
  :math:`\Delta x` as values.

  This is the whole block of the paper. A model adds only a norm and a residual
  connection, and no MLP. The published input map is one matrix with columns for
  z, x, B, C and the step sizes, in this order. Here it is three matrices,
  `in_proj`, `bc_proj` and `dt_proj`, and two convolutions, so that heads can be
  split over devices. The published models divide the initial `out_proj` by the
  square root of their depth: `num_layers`. They store the last K inputs of the
  convolution; the next token needs K - 1.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = Mamba2(16, head_features=8, state_features=4, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, carry.conv_bc.shape, carry.ssm.shape, y.shape
    ((2, 3, 32), (2, 3, 8), (2, 4, 4, 8), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Number `H P` of channels, `int(D * expansion_factor)`.
    num_heads: `H`.
    head_features: Channels `P` of a head.
    num_groups: `G`.
    state_features: Size `N` of the state of a channel.
    out_features: `D`.
  """

  carry_tails = ('conv', 'conv_bc')

  def __init__(
      self,
      in_features: int,
      *,
      state_features: int = 128,
      expansion_factor: float = 2.0,
      head_features: int | None = None,
      num_groups: int = 1,
      conv_kernel: int = 4,
      a_min: float = 1.0,
      a_max: float = 16.0,
      dt_min: float = 1e-3,
      dt_max: float = 0.1,
      dt_floor: float = 1e-4,
      dt_low: float = 0.0,
      dt_high: float | None = None,
      output_norm: Literal['after_gate', 'before_gate', 'none'] = 'after_gate',
      norm_epsilon: float = 1e-5,
      projection_scales: tuple[float, ...] = (),
      use_conv_bias: bool = True,
      use_bias: bool = False,
      num_layers: int = 1,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      state_features: Size `N` of the state of a channel.
      expansion_factor: Channels per input feature.
      head_features: Channels `P` of a head; if `None`, the published 64, or all
        channels if there are fewer.
      num_groups: Number `G` of groups of heads that share B and C.
      conv_kernel: Taps `K` of the convolution.
      a_min: Smallest initial rate `-A`.
      a_max: Largest initial rate.
      dt_min: Smallest initial step size.
      dt_max: Largest initial step size.
      dt_floor: Initial step sizes below are raised to it.
      dt_low: Step sizes of tokens below are raised to it.
      dt_high: Step sizes of tokens above are lowered to it; `None` for no
        limit.
      output_norm: Whether the norm comes after the gate, as above; before it,
        `norm(y) * silu(z)`; or not at all.
      norm_epsilon: Added to the mean squares in the norm.
      projection_scales: What z, x, B, C and the step sizes are multiplied by
        when they leave the input map, before the convolution and `dt_bias`
        (Falcon-H1). Empty means 1 for all.
      use_conv_bias: Whether the convolution has a bias.
      use_bias: Whether the input and output maps have biases. The map to step
        sizes always has one.
      num_layers: Depth of the model; the initial `out_proj` is divided by its
        square root (twice the depth where there are MLPs).
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.linear_attention`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those of the
        state: `A_log`, `D` and `dt_bias`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size, a rate or a step size is out of range.
    """
    self.in_features = self.out_features = d = in_features
    self.hidden_features = hidden = int(in_features * expansion_factor)
    self.state_features = state_features
    self.num_groups = self.norm_groups = num_groups
    self.conv_kernel = conv_kernel
    self.chunk_size = chunk_size
    self.dt_low, self.dt_high = dt_low, dt_high
    self.dtype = dtype
    checking.check_sizes(
        state_features=state_features, conv_kernel=conv_kernel,
        num_layers=num_layers,
    )
    self.head_features, self.num_heads = checking.channel_heads(
        hidden, head_features, num_groups
    )
    heads = self.num_heads
    if not 0 < a_min <= a_max:
      raise ValueError(
          f'`a_min`, `a_max` must be positive and in order, got {a_min}, '
          f'{a_max}.'
      )
    if dt_low < 0 or dt_high is not None and dt_high < dt_low:
      raise ValueError(
          '`dt_low`, `dt_high` must satisfy 0 <= dt_low <= dt_high, got '
          f'{dt_low}, {dt_high}.'
      )
    if output_norm not in OUTPUT_NORMS:
      raise ValueError(
          f'`output_norm` must be one of {", ".join(OUTPUT_NORMS)}, got '
          f'{output_norm!r}.'
      )
    if len(projection_scales) not in (0, 5):
      raise ValueError(
          '`projection_scales` must be five numbers, for z, x, B, C and the '
          f'step sizes, or empty, got {tuple(projection_scales)}.'
      )
    self.output_norm = output_norm
    self.projection_scales = tuple(projection_scales) or (1.0,) * 5
    step_sizes = initializers.step_size_bias(dt_min, dt_max, dt_floor)

    def linear(fan_in, out, axes, *, use_bias=use_bias, scale=1.0):
      init = initializers.uniform_fan_in(fan_in)
      return nnx.LinearGeneral(
          fan_in,
          out,
          use_bias=use_bias,
          kernel_init=lambda *args: init(*args) * scale,
          bias_init=init,
          kernel_metadata=dict(axes=axes),
          bias_metadata=dict(axes=axes[1:]),
          param_dtype=param_dtype,
          rngs=rngs,
      )

    taps = initializers.uniform_fan_in(conv_kernel)
    filters = lambda *shape, axes: nnx.Param(
        taps(rngs.params(), shape, param_dtype), axes=axes
    )
    shared = 2 * num_groups * state_features
    # Two maps, [D] -> [2, H P]: the gate, and into the convolution.
    self.in_proj = linear(d, (2, hidden), ('embed', None, 'hidden'))
    self.bc_proj = linear(d, shared, ('embed', None))
    self.dt_proj = linear(d, heads, ('embed', 'heads'), use_bias=False)
    self.conv = filters(conv_kernel, hidden, axes=(None, 'hidden'))
    self.conv_bc = filters(conv_kernel, shared, axes=(None, None))
    if use_conv_bias:
      self.conv_bias = filters(hidden, axes=('hidden',))
      self.conv_bc_bias = filters(shared, axes=(None,))
    else:
      self.conv_bias = self.conv_bc_bias = None
    # Parameters of the decay are float32 at least, and have no weight decay.
    per_head = lambda u: nnx.Param(u, axes=('heads',), recurrent=True)
    state_dtype = base.state_dtype(param_dtype)
    self.dt_bias = per_head(step_sizes(rngs.params(), (heads,), state_dtype))
    rates = jax.random.uniform(
        rngs.params(), (heads,), state_dtype, a_min, a_max
    )
    self.A_log = per_head(jnp.log(rates))
    self.D = per_head(jnp.ones((heads,), state_dtype))
    norm = common.HeadNorm(
        num_groups, hidden // num_groups, epsilon=norm_epsilon,
        param_dtype=param_dtype,
    )
    self.norm = None if output_norm == 'none' else norm
    self.out_proj = linear(
        hidden, d, ('hidden', 'embed'), scale=1 / math.sqrt(num_layers)
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    n, tail = self.state_features, self.conv_kernel - 1
    return base.carry_shape(
        Mamba2Carry,
        conv=(tail, self.hidden_features),
        conv_bc=(tail, 2 * self.num_groups * n),
        ssm=(self.num_heads, n, self.head_features),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    flags = dict(reset=reset, mask=mask)
    tails, z, u, b, c = self._convolved(ops.causal_conv1d, x, carry, flags)
    ssm, y = self._recur(x, u, b, c, carry.ssm, flags)
    return Mamba2Carry(*tails, ssm), self._readout(y, u, z, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    flags = dict(reset=reset, mask=mask)
    tails, z, u, b, c = self._convolved(ops.causal_conv1d_step, x, carry, flags)
    ssm = carry.ssm
    if reset is not None:
      ssm = base.select(reset, initial.ssm, ssm)
    ssm, y = self._recur_step(x, u, b, c, ssm, mask)
    if mask is not None:
      ssm = base.select(mask, ssm, carry.ssm)
    return Mamba2Carry(*tails, ssm), self._readout(y, u, z, mask)

  def _recur(self, x, u, b, c, ssm, flags):
    """Returns the last state and the outputs of the heads `[B, T, H, P]`."""
    delta, decay = self._steps(x)
    return ops.linear_attention(
        c, b, u * delta[..., None], ssm, log_decay=decay,
        chunk_size=self.chunk_size, **flags,
    )

  def _recur_step(self, x, u, b, c, ssm, mask):
    """Runs one token; what becomes of absent rows does not matter."""
    del mask
    delta, decay = self._steps(x)
    return ops.linear_attention_step(
        c, b, u * delta[..., None], ssm, log_decay=decay
    )

  def _convolved(self, convolve, x, carry, flags):
    """Returns both tails, the gate `[..., H P]`, and of the heads x, B and C.

    These are `[..., H, P]`, `[..., G, N]` and `[..., G, N]`.
    """
    z, u = common.project_each(self.in_proj, x)
    bc = common.project(self.bc_proj, x)
    of_z, of_u, of_b, of_c, _ = self.projection_scales
    z, u = _times(z, of_z), _times(u, of_u)
    if (of_b, of_c) != (1, 1):
      each = self.num_groups * self.state_features
      bc = bc * jnp.repeat(jnp.asarray([of_b, of_c], bc.dtype), each)
    bias = lambda b: None if b is None else b[...]
    tail, u = convolve(
        u, self.conv[...], bias(self.conv_bias), carry.conv, **flags
    )
    tail_bc, bc = convolve(
        bc, self.conv_bc[...], bias(self.conv_bc_bias), carry.conv_bc, **flags
    )
    u = jax.nn.silu(u)
    u = u.reshape(*x.shape[:-1], self.num_heads, self.head_features)
    bc = jax.nn.silu(bc)
    bc = bc.reshape(*x.shape[:-1], 2, self.num_groups, self.state_features)
    return (tail, tail_bc), z, u, bc[..., 0, :, :], bc[..., 1, :, :]

  def _steps(self, x):
    """Returns step sizes and log decays `[..., H]`."""
    dtype = base.state_dtype(x.dtype)
    delta = common.project(self.dt_proj, x, dtype)
    delta = _times(delta, self.projection_scales[-1])
    delta = jax.nn.softplus(delta + self.dt_bias[...].astype(dtype))
    if self.dt_low > 0 or self.dt_high is not None:
      delta = jnp.clip(delta, self.dt_low, self.dt_high)
    return delta, -jnp.exp(self.A_log[...].astype(dtype)) * delta

  def _readout(self, y, u, z, mask):
    """Maps the output of the heads `[..., H, P]` to `[..., D]`."""
    y = y + self.D[...].astype(y.dtype)[:, None] * u
    y, gate = y.reshape(z.shape), jax.nn.silu(z.astype(y.dtype))
    if self.output_norm == 'before_gate':
      y = self._normalized(y) * gate
    else:
      y = self._normalized(y * gate)
    return base.masked(common.project(self.out_proj, y.astype(z.dtype)), mask)

  def _normalized(self, y):
    """Applies the norm to each group of `[..., H P]`, if there is one."""
    if self.norm is None:
      return y
    size = y.shape[-1] // self.norm_groups
    groups = y.reshape(*y.shape[:-1], self.norm_groups, size)
    return self.norm(groups).reshape(y.shape)


def _times(x, scale):
  return x if scale == 1 else x * jnp.asarray(scale, x.dtype)
