"""RWKV-6, or Finch (Peng et al., 2024), https://arxiv.org/abs/2404.05892."""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common


class RWKV6Carry(NamedTuple):
  """State of `RWKV6`: the last token `[B, D]`, and the state `[B, H, N, N]`."""

  previous: jax.Array
  wkv: jax.Array


class RWKV6(base.RecurrentLayer):
  r"""The time mixing of RWKV-6: linear attention with data-dependent decay.

  .. math::
      s_t &= x_{t-1} - x_t, \quad
      l_t = \tanh((x_t + \mu_x \odot s_t) A) \\
      x^j_t &= x_t + (\mu_j + l^j_t B_j) \odot s_t,
      \quad j \in \{w, k, v, r, g\} \\
      r_t &= W_r x^r_t, \quad k_t = W_k x^k_t, \quad v_t = W_v x^v_t, \quad
      w_t = e^{-\exp(d + \tanh(x^w_t A_d) B_d)} \\
      o_t &= (S_{t-1} + \mathrm{diag}(u) k_t v_t^\top)^\top r_t, \quad
      S_t = \mathrm{diag}(w_t) S_{t-1} + k_t v_t^\top \\
      y_t &= W_o (\mathrm{norm}(o_t) \odot \mathrm{silu}(W_g x^g_t))

  where :math:`d` is the parameter `time_decay` and :math:`u` is `bonus`, the
  weight of the current token. States, decays and norm are separate for each
  head of `N` features. The weights of the previous token and the decays depend
  on the tokens, through maps of low rank. The state is `D N + D` numbers a
  sequence (49152 + 768 if `D` is 768). A token costs `5 D^2 + D (10 R + 2 R_d)`
  multiplications in matrices, and `3 D N` for the state. Whole sequences are
  matrix products in chunks (`ops.linear_attention`).

  The published model alternates this layer and the channel mixing of RWKV-4 (an
  `expansion_factor` of 3.5, a `key_gain` of 1), each after a LayerNorm and with
  a residual connection: `layer='rwkv6,rwkv4_channel_mix'`, `norm='layer'`,
  `mlp='none'`. It also has a LayerNorm right after the embedding. Here mu is
  the weight of the previous token, as in the paper; in `RWKV4` it is that of
  the current one. Initial values are those of the published training code, some
  of which are not in the paper. The first factors of the low-rank maps are
  zero, and the second ones are drawn from +-0.01; an earlier version draws both
  from +-1e-4. Both ranks are doubled for a `D` of 4096. That code has no weight
  decay on low-rank maps and `bonus`, and twice the rate for `time_decay`: all
  of these have `recurrent` metadata.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = RWKV6(16, head_features=8, layer_index=1, num_layers=4,
    ...               rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.previous.shape, carry.wkv.shape, y.shape
    ((2, 16), (2, 2, 8, 8), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    num_heads: `H`.
    head_features: Features `N` of a head.
    out_features: `D`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      head_features: int | None = None,
      mix_rank: int = 32,
      decay_rank: int = 64,
      norm_epsilon: float = 64e-5,
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
      head_features: Features `N` of a head; if `None`, the published 64, or `D`
        if that is smaller.
      mix_rank: Rank `R` of the map from tokens to each of the five shifts.
      decay_rank: Rank `R_d` of the map from tokens to decays.
      norm_epsilon: Added to the variances in the norm.
      layer_index: Index of the layer among the time mixings of the model. The
        initial decays, shifts and norms depend on it.
      num_layers: Number of such layers in the model.
      zero_init: Whether the output map and the first factors of the low-rank
        maps start at zero, as published, instead of orthogonal and uniform in
        +-0.01.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.linear_attention`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for `time_decay`
        and `bonus`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size or `layer_index` is out of range.
    """
    self.in_features = self.out_features = d = in_features
    self.head_features = min(64, d) if head_features is None else head_features
    self.chunk_size = chunk_size
    self.dtype = dtype
    checking.check_sizes(
        head_features=self.head_features, mix_rank=mix_rank,
        decay_rank=decay_rank,
    )
    if d % self.head_features:
      raise ValueError(
          f'`head_features` must divide the {d} features, got '
          f'{self.head_features}.'
      )
    common.check_depth(layer_index, num_layers)
    self.num_heads = heads = d // self.head_features

    r01 = layer_index / max(num_layers - 1, 1)
    r10 = 1 - layer_index / num_layers
    channel = jnp.arange(d)
    share, place = channel / d, channel / max(d - 1, 1)
    shift = lambda u: nnx.Param((1 - u).astype(param_dtype), axes=(None,))
    self.mu_x = shift(share**r10)
    self.mu_w = shift(share**r10)
    self.mu_k = shift(share**r10)
    self.mu_v = shift(share**r10 + 0.3 * r01)
    self.mu_r = shift(share ** (0.5 * r10))
    self.mu_g = shift(share ** (0.5 * r10))

    def low_rank(*shape, axes, first):
      if first and zero_init:
        value = jnp.zeros(shape, param_dtype)
      else:
        value = jax.random.uniform(
            rngs.params(), shape, param_dtype, -0.01, 0.01
        )
      return nnx.Param(value, axes=axes, recurrent=True)

    # For w, k, v, r and g, in this order.
    self.mix_A = low_rank(
        d, 5, mix_rank, axes=('embed', None, None), first=True
    )
    self.mix_B = low_rank(
        5, mix_rank, d, axes=(None, None, 'embed'), first=False
    )
    self.decay_A = low_rank(d, decay_rank, axes=('embed', None), first=True)
    self.decay_B = low_rank(
        decay_rank, d, axes=('inner', 'hidden'), first=False
    )
    # Parameters of the decay are float32 at least.
    state_dtype = base.state_dtype(param_dtype)
    self.time_decay = nnx.Param(
        (-6 + 5 * place ** (0.7 + 1.3 * r01)).astype(state_dtype),
        axes=('hidden',), recurrent=True,
    )
    zigzag = 0.1 * ((channel + 1) % 3 - 1)
    self.bonus = nnx.Param(
        (r01 * (1 - place) + zigzag).astype(state_dtype).reshape(heads, -1),
        axes=('heads', None), recurrent=True,
    )

    def linear(axes, gain):
      orthogonal = nnx.initializers.orthogonal(gain)

      def init(key, shape, dtype):  # QR needs float32.
        return orthogonal(key, shape, base.state_dtype(dtype)).astype(dtype)

      return nnx.Linear(
          d,
          d,
          use_bias=False,
          kernel_init=init if gain else nnx.initializers.zeros,
          kernel_metadata=dict(axes=axes),
          param_dtype=param_dtype,
          rngs=rngs,
      )

    into = ('embed', 'hidden')
    self.receptance = linear(into, 1.0)
    self.key = linear(into, 0.1)
    self.value = linear(into, 1.0)
    self.gate = linear(into, 0.1)
    self.output = linear(('hidden', 'embed'), 0.0 if zero_init else 1.0)
    self.norm = common.HeadNorm(
        heads, self.head_features, kind='layer', epsilon=norm_epsilon,
        use_bias=True, param_dtype=param_dtype,
        initial_scale=((1 + layer_index) / num_layers) ** 0.7,
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    n = self.head_features
    return base.carry_shape(
        RWKV6Carry, previous=(self.in_features,), wkv=(self.num_heads, n, n)
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    previous, r, k, v, gate, decay = self._project(x, carry, reset, mask)
    wkv, y = ops.linear_attention(
        r, k, v, carry.wkv, log_decay=decay, bonus=self._bonus(decay.dtype),
        reset=reset, mask=mask, chunk_size=self.chunk_size,
    )
    return RWKV6Carry(previous, wkv), self._readout(y, gate, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    previous, r, k, v, gate, decay = self._project(x, carry, reset, mask)
    wkv = carry.wkv
    if reset is not None:
      wkv = base.select(reset, initial.wkv, wkv)
    wkv, y = ops.linear_attention_step(
        r, k, v, wkv, log_decay=decay, bonus=self._bonus(decay.dtype)
    )
    if mask is not None:
      wkv = base.select(mask, wkv, carry.wkv)
    return RWKV6Carry(previous, wkv), self._readout(y, gate, mask)

  def _project(self, x, carry, reset, mask):
    """Returns the last token, and the operands of the state for all tokens.

    The operands are receptances, keys and values `[..., H, N]`, gates `[...,
    D]`, and log decays `[..., H, N]` in the dtype of states.
    """
    previous, shifted = common.token_shift(
        x, carry.previous, reset=reset, mask=mask
    )
    dtype = base.state_dtype(x.dtype)
    wide = x.astype(dtype)
    change = shifted.astype(dtype) - wide
    mixed = lambda mu: (wide + change * mu).astype(x.dtype)

    def product(u, kernel):
      kernel = kernel.astype(x.dtype)
      return jnp.tensordot(
          u.astype(x.dtype), kernel, 1, preferred_element_type=dtype
      )

    low = product(mixed(self.mu_x[...].astype(dtype)), self.mix_A[...])
    low = jnp.tanh(low)
    mu = (self.mu_w, self.mu_k, self.mu_v, self.mu_r, self.mu_g)
    x_w, x_k, x_v, x_r, x_g = (
        mixed(m[...].astype(dtype) + product(low[..., i, :], self.mix_B[i]))
        for i, m in enumerate(mu)
    )
    decay = jnp.tanh(product(x_w, self.decay_A[...]))
    decay = product(decay, self.decay_B[...])
    decay = -jnp.exp(self.time_decay[...].astype(dtype) + decay)
    by_head = lambda u: u.reshape(
        *u.shape[:-1], self.num_heads, self.head_features
    )
    r, k, v = (
        by_head(common.project(linear, u))
        for linear, u in (
            (self.receptance, x_r), (self.key, x_k), (self.value, x_v)
        )
    )
    gate = jax.nn.silu(common.project(self.gate, x_g))
    return previous, r, k, v, gate, by_head(decay)

  def _bonus(self, dtype):
    return self.bonus[...].astype(dtype)

  def _readout(self, y, gate, mask):
    """Maps the output of the heads `[..., H, N]` to `[..., D]`."""
    y = self.norm(y).reshape(gate.shape)
    return base.masked(common.project(self.output, y * gate), mask)
