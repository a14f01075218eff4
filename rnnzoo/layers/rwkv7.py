"""RWKV-7 (Peng et al., 2025), https://arxiv.org/abs/2503.14456."""

import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers


class RWKV7Carry(NamedTuple):
  """State of `RWKV7`: the last token `[B, D]`, and matrices `[B, H, K, K]`."""

  previous: jax.Array
  S: jax.Array


class RWKV7(base.RecurrentLayer):
  r"""The time mixing of RWKV-7: a generalised delta rule with vector decays.

  With :math:`x^j_t = x_t + \mu_j (x_{t-1} - x_t)`, and for each head

  .. math::
      r_t &= W_r x^r_t, \quad k_t = W_k x^k_t, \quad
      a_t = \sigma(a_0 + x^a_t a_1 a_2), \quad
      g_t = \sigma(x^g_t g_1) g_2 \\
      v_t &= v'_t + (v^{first}_t - v'_t) \, \sigma(v_0 + x^v_t v_1 v_2),
      \quad v'_t = W_v x^v_t \\
      w_t &= \exp(-e^{-1/2} \sigma(w_0 + \tanh(x^w_t w_1) w_2)) \\
      \hat k_t &= \frac{k_t \odot \kappa}{\|k_t \odot \kappa\|}, \quad
      \tilde k_t = k_t \odot (1 + (a_t - 1) \odot \alpha) \\
      S_t &= \mathrm{diag}(w_t) S_{t-1}
             - (\hat k_t \odot a_t) (S_{t-1}^\top \hat k_t)^\top
             + \tilde k_t v_t^\top \\
      y_t &= W_o \bigl((\mathrm{norm}(S_t^\top r_t)
             + (r_t \odot \rho)^\top \tilde k_t \, v_t) \odot g_t\bigr)

  where :math:`\kappa, \alpha, \rho` are the parameters `k_k`, `k_a`, `r_k`. The
  value of a token replaces the value its key had before, to the degree given by
  `a`. Every feature of a key has its own decay, of at least 0.545. The norm is
  over the features of a head, with epsilon 64e-5 as published for `K` = 64. The
  state is `D K + D` numbers a sequence: a matrix for each head, and the last
  token. A token costs `4 D^2` multiplications, about `2 D R` for each of four
  maps of low rank `R`, and for the state `5 D K` in a step, or about `D (4 K +
  6 Q)` in parallel, in chunks of `Q` tokens (`ops.dplr_scan`).

  The values of all time mixings of a model depend on those of the first one:
  `v_first`, which `first_value` of the first one returns. `None` means that
  this is the first. All have the parameters `v0`, `v1`, `v2`. The first one
  does not use them, and published weights do not have them there.

  The published model alternates this layer and `RWKV7ChannelMix`, each after a
  LayerNorm and with a residual connection: `layer='rwkv7,rwkv7_channel_mix'`,
  `norm='layer'`, `mlp='none'`. It also has a LayerNorm right after the
  embedding, `embed_norm=True`. The state is stored as (key, value); published
  inference code has (value, key). Initial values are those of the published
  module. The published training script draws `receptance`, `key` and `value`
  again (orthogonal, with gain 1, 0.1 and 1), and sets the initial scale of the
  norm of layer l of n to `((1 + l) / n)^0.7`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = RWKV7(16, head_features=8, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.previous.shape, carry.S.shape, y.shape
    ((2, 16), (2, 2, 8, 8), (2, 10, 16))
    >>> later = RWKV7(
    ...     16, head_features=8, layer_index=1, num_layers=2, rngs=nnx.Rngs(1)
    ... )
    >>> v_first = layer.first_value(x)                # [B, T, D]
    >>> carry, y = later(y, v_first=v_first)

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads, `D / K`.
    head_features: Features `K` of a key and of a value of a head.
  """

  def __init__(
      self,
      in_features: int,
      *,
      head_features: int | None = None,
      decay_rank: int | None = None,
      rate_rank: int | None = None,
      value_rank: int | None = None,
      gate_rank: int | None = None,
      layer_index: int = 0,
      num_layers: int = 1,
      zero_init: bool = True,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      head_features: Features `K` of a head, a divisor of `D`; if `None`, the
        largest power of two up to the published 64 that divides `D`.
      decay_rank: Rank of `w1` and `w2`. If `None`, the suggestion of the
        published code: `2.5 sqrt(D)` rounded to a multiple of 32, and at least
        32.
      rate_rank: Rank of `a1` and `a2`, as for `decay_rank`.
      value_rank: Rank of `v1` and `v2`, with 1.7 in place of 2.5.
      gate_rank: Rank of `g1` and `g2`, with 5 in place of 2.5.
      layer_index: Index of the layer among the time mixings of the model. The
        initial decays and shifts of the channels depend on it.
      num_layers: Number of such layers in the model.
      zero_init: Whether `output` and the first factors of the low-rank maps
        start at zero, as published, instead of uniform.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.dplr_scan`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for `w0`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If `layer_index` is out of range, or sizes do not fit.
    """
    common.check_depth(layer_index, num_layers)
    self.in_features = self.out_features = d = in_features
    if head_features is None:
      head_features = math.gcd(d, 64)
    if head_features < 1 or d % head_features:
      raise ValueError(
          f'`head_features` must divide `in_features` = {d}, got '
          f'{head_features}.'
      )
    self.head_features, self.num_heads = head_features, d // head_features
    self.chunk_size = chunk_size
    self.dtype = dtype

    r01 = layer_index / max(num_layers - 1, 1)
    r10 = 1 - layer_index / num_layers
    channel = jnp.arange(d)
    shift = lambda power: nnx.Param(
        (1 - (channel / d) ** (power * r10)).astype(param_dtype), axes=(None,)
    )
    self.mu_r, self.mu_w, self.mu_k = shift(0.2), shift(0.9), shift(0.7)
    self.mu_v, self.mu_a, self.mu_g = shift(0.7), shift(0.9), shift(0.2)

    place = channel / max(d - 1, 1)
    ramp_up = place - 0.5
    middle = (head_features - 1) / 2
    zigzag = (channel % head_features - middle) / max(middle, 0.5)
    zigzag = zigzag * abs(zigzag)
    ramp = -6 + 6 * place ** (1 + r01**0.3)
    hidden = lambda u, dtype=param_dtype, **metadata: nnx.Param(
        (u + jnp.zeros(d)).astype(dtype), axes=('hidden',), **metadata
    )
    self.w0 = hidden(
        ramp + 0.5 + 2.5 * zigzag, base.state_dtype(param_dtype),
        recurrent=True,
    )
    self.a0 = hidden(-0.19 + 0.3 * zigzag + 0.4 * ramp_up)
    self.v0 = hidden(0.73 - 0.4 * ramp_up)
    self.k_k = hidden(0.71 - 0.1 * ramp_up)
    self.k_a = hidden(1.02)
    self.r_k = nnx.Param(
        jnp.full((self.num_heads, head_features), -0.04, param_dtype),
        axes=('heads', None),
    )

    def low_rank(name, rank, factor):
      if rank is None:
        rank = max(32, round(factor * d**0.5 / 32) * 32)
      if rank < 1:
        raise ValueError(f'`{name}` must be at least 1, got {rank}.')
      first = nnx.initializers.zeros
      if not zero_init:
        first = initializers.uniform_fan_in(d)
      orthogonal = nnx.initializers.orthogonal(0.1 * max(rank / d, 1) ** 0.5)
      wide = base.state_dtype(param_dtype)  # QR needs float32.
      second = orthogonal(rngs.params(), (rank, d), wide).astype(param_dtype)
      return (
          nnx.Param(
              first(rngs.params(), (d, rank), param_dtype),
              axes=('embed', None),
          ),
          nnx.Param(second, axes=('inner', 'hidden')),
      )

    self.w1, self.w2 = low_rank('decay_rank', decay_rank, 2.5)
    self.a1, self.a2 = low_rank('rate_rank', rate_rank, 2.5)
    self.v1, self.v2 = low_rank('value_rank', value_rank, 1.7)
    self.g1, self.g2 = low_rank('gate_rank', gate_rank, 5.0)
    options = dict(param_dtype=param_dtype, rngs=rngs)
    into, out = ('embed', 'hidden'), ('hidden', 'embed')
    self.receptance = linear(d, d, into, 0.5, **options)
    self.key = linear(d, d, into, 0.05, **options)
    self.value = linear(d, d, into, 0.5, **options)
    self.output = linear(d, d, out, 0 if zero_init else 0.5, **options)
    self.norm = common.HeadNorm(
        self.num_heads, head_features, kind='layer', epsilon=64e-5,
        use_bias=True, param_dtype=param_dtype,
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    n = self.head_features
    return base.carry_shape(
        RWKV7Carry, previous=(self.in_features,), S=(self.num_heads, n, n)
    )

  def first_value(self, x, carry=None, *, reset=None, mask=None) -> jax.Array:
    """Returns `v_first` for the other time mixings of a model.

    Args:
      x: Inputs of this layer `[B, T, D]`, or `[B, D]` for a step.
      carry: The carry before these inputs; `initialize_carry` if `None`.
      reset: As in a call, or in a step.
      mask: Likewise.

    Returns:
      The values of this layer, an array like `x` in the compute dtype, 0 where
      masked.

    Raises:
      ValueError: If shapes or dtypes disagree.
    """
    x, carry, _, reset = base.prepare(
        self, x, carry, reset, mask, step=x.ndim == 2
    )
    _, shifted = common.token_shift(x, carry.previous, reset=reset, mask=mask)
    v = common.project(self.value, mix(x, shifted, self.mu_v))
    return base.masked(v, mask)

  def __call__(self, x, carry=None, *, reset=None, mask=None, v_first=None):
    """Runs a whole sequence; see `RecurrentLayer`.

    Args:
      x: Inputs `[B, T, D]`.
      carry: The state left by earlier tokens.
      reset: Booleans `[B, T]`.
      mask: Booleans `[B, T]`.
      v_first: `first_value` of the first time mixing of the model for these
        tokens `[B, T, D]`, or `None` if this is the first one.

    Returns:
      `(carry, y)`.

    Raises:
      ValueError: If shapes or dtypes disagree.
    """
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    previous, operands, log_decay, g = self._project(
        x, carry, reset, mask, v_first
    )
    S, y = ops.dplr_scan(
        *operands, S0=carry.S, log_decay=log_decay, reset=reset, mask=mask,
        chunk_size=self.chunk_size,
    )
    return RWKV7Carry(previous, S), self._readout(y, operands, g, mask)

  def step(self, carry, x, *, reset=None, mask=None, v_first=None):
    """Runs one token: `x` and `v_first` `[B, D]`, `reset` and `mask` `[B]`."""
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    previous, operands, log_decay, g = self._project(
        x, carry, reset, mask, v_first
    )
    S = carry.S
    if reset is not None:
      S = base.select(reset, initial.S, S)
    S, y = ops.dplr_step(*operands, S=S, log_decay=log_decay)
    if mask is not None:
      S = base.select(mask, S, carry.S)
    return RWKV7Carry(previous, S), self._readout(y, operands, g, mask)

  def _project(self, x, carry, reset, mask, v_first):
    """Computes all that does not depend on the matrix state.

    Returns:
      `(previous, (r, k, v, a, b), log_decay, g)`: the last token, operands of
      `ops.dplr_scan`, all `[..., H, K]`, and the gate `[..., D]`.
    """
    previous, shifted = common.token_shift(
        x, carry.previous, reset=reset, mask=mask
    )
    dtype = base.state_dtype(x.dtype)
    mixed = lambda mu: mix(x, shifted, mu)
    heads = lambda u: u.reshape(
        *u.shape[:-1], self.num_heads, self.head_features
    )
    wide = lambda p: p[...].astype(dtype)
    r = common.project(self.receptance, mixed(self.mu_r))
    k = common.project(self.key, mixed(self.mu_k), dtype)
    of_v = mixed(self.mu_v)
    v = common.project(self.value, of_v)
    if v_first is not None:
      v_first = base.masked(_checked_like(x, v_first), mask)
      share = jax.nn.sigmoid(wide(self.v0) + _low_rank(of_v, self.v1, self.v2))
      v = (v + (v_first - v) * share).astype(x.dtype)
    w = wide(self.w0) + _low_rank(
        mixed(self.mu_w), self.w1, self.w2, jnp.tanh
    )
    log_decay = -math.exp(-0.5) * jax.nn.sigmoid(w)
    a = jax.nn.sigmoid(
        wide(self.a0) + _low_rank(mixed(self.mu_a), self.a1, self.a2)
    )
    g = _low_rank(mixed(self.mu_g), self.g1, self.g2, jax.nn.sigmoid)
    removed = _unit(heads(k * wide(self.k_k)))
    k = k * (1 + (a - 1) * wide(self.k_a))
    operands = (
        heads(r), heads(k), heads(v), -removed, removed * heads(a)
    )
    operands = tuple(u.astype(x.dtype) for u in operands)
    return previous, operands, heads(log_decay), g

  def _readout(self, y, operands, g, mask):
    """Maps the output of the heads `[..., H, K]` to `[..., D]`."""
    r, k, v = operands[:3]
    dtype = g.dtype
    own = r.astype(dtype) * k.astype(dtype) * self.r_k[...].astype(dtype)
    y = self.norm(y) + own.sum(-1, keepdims=True) * v.astype(dtype)
    y = (y.reshape(g.shape) * g).astype(v.dtype)
    return base.masked(common.project(self.output, y), mask)


def mix(x, shifted, mu):
  """Returns `x_t + mu (x_{t-1} - x_t)` in the dtype of `x`."""
  mu = mu[...].astype(base.state_dtype(x.dtype))
  return (x + (shifted - x) * mu).astype(x.dtype)


def _low_rank(x, first, second, activation_fn=lambda u: u):
  """Maps `[..., D]` by `[D, R]`, a function and `[R, D]`, with float32 sums."""
  dtype = base.state_dtype(x.dtype)
  times = lambda u, p: common.product(u, p[...], dtype)
  return times(activation_fn(times(x, first)).astype(x.dtype), second)


def _unit(u):
  """Normalises the features of each head to length 1.

  Below a length of 1e-12 the result is 0 and has no gradient.
  """
  square = jnp.square(u).sum(-1, keepdims=True)
  some = square > 1e-24
  return jnp.where(some, u * jax.lax.rsqrt(jnp.where(some, square, 1)), 0)


def _checked_like(x, v_first):
  if v_first.shape != x.shape or not jnp.issubdtype(
      v_first.dtype, jnp.floating
  ):
    raise ValueError(
        f'`v_first` must be floating {x.shape}, got {v_first.dtype} '
        f'{v_first.shape}.'
    )
  return v_first.astype(x.dtype)


def linear(n, m, axes, gain, *, param_dtype, rngs):
  """Makes a map `[n] -> [m]`, uniform within `gain / sqrt(min(n, m))`."""
  width = min(n, m)  # `D` for both maps of a channel mixing.
  bound = gain / math.sqrt(width)

  def init(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nnx.Linear(
      n,
      m,
      use_bias=False,
      kernel_init=init if gain else nnx.initializers.zeros,
      kernel_metadata=dict(axes=axes),
      param_dtype=param_dtype,
      rngs=rngs,
  )
