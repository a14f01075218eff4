"""Kimi Delta Attention (Kimi Team, 2025).

https://arxiv.org/abs/2510.26692
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import delta_memory
from rnnzoo.layers import initializers
from rnnzoo.layers import linear_maps


class KDA(delta_memory.DeltaMemory):
  r"""`GatedDeltaNet` with a decay for each feature of a key.

  With queries, keys, values and :math:`\beta` as in `DeltaNet`, for each head

  .. math::
      g_t &= -e^{A_{\log}} \, \mathrm{softplus}(W_f^2 W_f^1 x_t + b_f) \\
      S'_t &= \mathrm{diag}(e^{g_t}) S_{t-1} \\
      S_t &= S'_t + k_t \beta_t (v_t - S_t'^\top k_t)^\top \\
      y_t &= W_o \bigl(\mathrm{norm}(S_t^\top q_t / \sqrt{K})
             \odot \sigma(W_g^2 W_g^1 x_t)\bigr)

  The maps to decays and to the output gate have rank `V`. With `lower_bound`,
  the safe gate of flash-linear-attention, no log decay is below that bound:
  :math:`g_t = \mathrm{bound} \cdot \sigma(e^{A_{\log}} (W_f^2 W_f^1 x_t +
  b_f))`.

  `G` heads of values share the queries and keys of `H`. The state is `G K V`
  numbers a sequence, and `(C - 1) (2 H K + G V)` for the convolutions (32768 +
  2304 if `D` is 256). A token costs `2 D (H K + G V) + V (2 D + G (K + V))`
  multiplications in maps, and for the state `3 G K V` in a step. In parallel it
  runs in chunks of tokens (`ops.dplr_scan`), like `RWKV7`.

  The defaults are those of Kimi Linear, whose layers have heads of 128
  features. `use_gate_bias`, `num_value_heads`, `allow_negative_eigenvalues` and
  `lower_bound` are options of flash-linear-attention, which has the bias by
  default. Rates :math:`e^{A_{\log}}` start uniform in (1, 16), or at 1 with a
  `lower_bound`; all else starts as in `GatedDeltaNet`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = KDA(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, carry.S.shape, y.shape
    ((2, 3, 48), (2, 2, 8, 8), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads of queries and keys.
    num_value_heads: Number `G` of heads of values.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
    lower_bound: The lowest log decay, or `None`.
  """

  recurrence = staticmethod(ops.dplr_scan)
  recurrence_step = staticmethod(ops.dplr_step)

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int | None = None,
      num_value_heads: int | None = None,
      key_features: int | None = None,
      value_features: int | None = None,
      conv_kernel: int = 4,
      lower_bound: float | None = None,
      allow_negative_eigenvalues: bool = False,
      use_gate_bias: bool = False,
      dt_min: float = 1e-3,
      dt_max: float = 0.1,
      norm_epsilon: float = 1e-5,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads of queries and keys; `D / K` if `None`.
      num_value_heads: Number `G` of heads of values, a multiple of `H`; `H` if
        `None`.
      key_features: Features `K` of a key. If `None`, `D / H`; if `num_heads` is
        `None` too, the largest power of two up to 128 that divides `D`.
      value_features: Features `V` of a value; `K` if `None`.
      conv_kernel: Taps `C` of the convolutions.
      lower_bound: The lowest log decay, negative (-5 where it was published),
        or `None` for no bound.
      allow_negative_eigenvalues: Whether `beta` is in (0, 2) instead of (0, 1).
      use_gate_bias: Whether the map to the output gate has a bias.
      dt_min: Smallest initial `softplus(b_f)`.
      dt_max: Largest initial `softplus(b_f)`.
      norm_epsilon: Added to the mean squares in the norm.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.dplr_scan`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those of the
        decay: `A_log` and `dt_bias`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If sizes do not fit, or the bound is not negative.
    """
    if lower_bound is not None and not lower_bound < 0:
      raise ValueError(f'`lower_bound` must be negative, got {lower_bound}.')
    num_heads, key_features = delta_memory.heads_of(
        in_features, 128, num_heads, key_features
    )
    if value_features is None:
      value_features = key_features
    self.lower_bound = lower_bound
    self.allow_negative_eigenvalues = allow_negative_eigenvalues
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
    self._make_tokens(
        in_features, num_heads=num_heads, num_value_heads=num_value_heads,
        key_features=key_features, value_features=value_features,
        conv_kernel=conv_kernel, chunk_size=chunk_size, dtype=dtype, **options,
    )
    self._make_rates(**options)
    self._make_decay(dt_min, dt_max, **options)
    usual, rank = initializers.uniform_fan_in, value_features
    self.gate_in = delta_memory.linear(
        in_features, rank, ('embed', None), **options
    )
    self.gate_out = linear_maps.into_heads(
        rank, self.num_value_heads, value_features, usual(rank), axis='inner',
        bias_init=usual(rank), use_bias=use_gate_bias, **options,
    )
    self._make_readout(norm_epsilon, **options)

  @property
  def decay_heads(self) -> int:
    """Number of heads that have decays of their own."""
    return self.num_value_heads

  def _make_rates(self, **options):
    """Makes the map to the rates of correction."""
    self.beta = delta_memory.linear(
        self.in_features, self.num_value_heads, ('embed', 'heads'), **options
    )

  def _make_decay(self, dt_min, dt_max, *, param_dtype, rngs):
    """Makes the maps and the parameters of the decays."""
    rank, heads = self.value_features, self.decay_heads
    options = dict(param_dtype=param_dtype, rngs=rngs)
    self.decay_in = delta_memory.linear(
        self.in_features, rank, ('embed', None), **options
    )
    self.decay_out = linear_maps.into_heads(
        rank, heads, self.key_features, initializers.uniform_fan_in(rank),
        axis='inner', **options,
    )
    # Parameters of the decay are float32 at least, and have no weight decay.
    dtype = base.state_dtype(param_dtype)
    rates = jnp.ones((heads,), dtype)
    if self.lower_bound is None:
      rates = jax.random.uniform(rngs.params(), (heads,), dtype, 1.0, 16.0)
    self.A_log = nnx.Param(jnp.log(rates), axes=('heads',), recurrent=True)
    step_sizes = initializers.step_size_bias(dt_min, dt_max)
    self.dt_bias = nnx.Param(
        step_sizes(rngs.params(), (heads, self.key_features), dtype),
        axes=('heads', None), recurrent=True,
    )

  def _operands(self, q, k, v, x):
    q, k = (
        delta_memory.shared(delta_memory.unit(u), self.num_value_heads)
        for u in (q, k)
    )
    return operands(q, k, v, self._rates(self.beta, x), self._log_decay(x))

  def _log_decay(self, x):
    """Maps `[..., D]` to `[..., heads, K]`, in the dtype of states."""
    dtype = base.state_dtype(x.dtype)
    low = common.project(self.decay_in, x)
    raw = common.project(self.decay_out, low, dtype)
    return log_decay(
        raw, self.A_log[...], self.dt_bias[...], lower_bound=self.lower_bound
    )

  def _gate(self, y, x):
    gate = common.project(self.gate_out, common.project(self.gate_in, x))
    return y * jax.nn.sigmoid(gate)


def operands(q, k, v, beta, log_decay) -> dict[str, Any]:
  """Returns the operands of `ops.dplr_scan` for Kimi Delta Attention.

  Args:
    q: Queries `[..., H, K]`.
    k: Keys `[..., H, K]`.
    v: Values `[..., H, V]`.
    beta: Rates of correction `[..., H]`.
    log_decay: `[..., H, K]`.
  """
  written = (beta[..., None] * k).astype(k.dtype)
  return dict(
      q=q, k=written, v=v, a=ops.decayed(k, log_decay), b=None,
      log_decay=log_decay,
  )


def log_decay(
    raw: jax.Array,
    A_log: jax.Array,
    dt_bias: jax.Array,
    *,
    lower_bound: float | None = None,
) -> jax.Array:
  """Returns log decays: `-exp(A_log) softplus(raw + dt_bias)`, or bounded ones.

  Args:
    raw: `[..., H, K]`.
    A_log: `[H]`.
    dt_bias: `[H, K]`.
    lower_bound: If not `None`, the result is `lower_bound sigmoid(exp(A_log)
      (raw + dt_bias))`.

  Returns:
    `[..., H, K]`.
  """
  if lower_bound is None:
    return delta_memory.log_decay(raw, A_log[:, None], dt_bias)
  rate = jnp.exp(A_log.astype(raw.dtype))[:, None]
  return lower_bound * jax.nn.sigmoid(rate * (raw + dt_bias.astype(raw.dtype)))
