"""Gated DeltaNet (Yang et al., 2024), https://arxiv.org/abs/2412.06464."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import common
from rnnzoo.layers import delta_memory


class GatedDeltaNet(delta_memory.DeltaMemory):
  r"""`DeltaNet` with the decay of Mamba-2 and an output gate.

  With queries, keys, values and :math:`\beta` as in `DeltaNet`, for each head

  .. math::
      g_t &= -e^{A_{\log}} \, \mathrm{softplus}(W_a x_t + b_a) \\
      S'_t &= e^{g_t} S_{t-1} \\
      S_t &= S'_t + k_t \beta_t (v_t - S_t'^\top k_t)^\top \\
      y_t &= W_o \bigl(\mathrm{norm}(S_t^\top q_t / \sqrt{K})
             \odot \mathrm{silu}(W_g x_t)\bigr)

  A correction reads the state after the decay. Keys have `0.75 D` features in
  total, and values twice as many, so that the layer has about `6 D^2`
  parameters, like a block of Mamba-2. The state is `H K V` numbers a sequence,
  and `(C - 1) H (2 K + V)` for the convolutions (24576 + 2304 if `D` is 256). A
  token costs `D H (2 K + 3 V)` multiplications in maps, and for the state as
  much as in `DeltaNet`: one decay a head costs almost nothing.

  With `num_value_heads`, `G` heads of values have a decay and a :math:`\beta`
  of their own, and `G / H` of them share the queries and keys of a head, as in
  Qwen3-Next: `num_heads=16, num_value_heads=32, key_features=128,
  norm_epsilon=1e-6` if `D` is 2048. Its `b_a` start at 1, which is
  `dt_min=1.3132617, dt_max=1.3132617`. The state is then `G K V` numbers.

  The two published implementations differ in details. Here `beta` has no bias,
  as in flash-linear-attention (that of NVIDIA has one). The initial rates
  :math:`e^{A_{\log}}` are uniform up to 16, as in both. They start at 1e-3,
  because their logarithms are stored.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = GatedDeltaNet(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, carry.S.shape, y.shape
    ((2, 3, 48), (2, 2, 6, 12), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads of queries and keys.
    num_value_heads: Number `G` of heads of values.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int | None = None,
      num_value_heads: int | None = None,
      key_features: int | None = None,
      value_features: int | None = None,
      conv_kernel: int = 4,
      activation: str = 'silu',
      allow_negative_eigenvalues: bool = False,
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
      num_heads: Number `H` of heads; `0.75 D / K` if `None`.
      num_value_heads: Number `G` of heads of values, a multiple of `H`; `H` if
        `None`.
      key_features: Features `K` of a key. If `None`, `0.75 D / H`; if
        `num_heads` is `None` too, the largest power of two up to 256 that
        divides `0.75 D`.
      value_features: Features `V` of a value; `2 K H / G` if `None`.
      conv_kernel: Taps `C` of the convolutions.
      activation: The activation of queries and keys: `silu`, `relu`, `elu`
        (plus 1) or `identity`.
      allow_negative_eigenvalues: Whether `beta` is in (0, 2) instead of (0, 1).
      dt_min: Smallest initial `softplus(b_a)`.
      dt_max: Largest initial `softplus(b_a)`.
      norm_epsilon: Added to the mean squares in the norm.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.delta_rule`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those of the
        decay: `A_log` and `dt_bias`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If sizes do not fit, or the activation is unknown.
    """
    num_heads, key_features = delta_memory.heads_of(
        3 * in_features // 4, 256, num_heads, key_features
    )
    if value_features is None:
      value_features = delta_memory.values_of(
          num_heads, num_value_heads, 2 * key_features
      )
    self.activation = delta_memory.checked_activation(activation)
    self.allow_negative_eigenvalues = allow_negative_eigenvalues
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
    self._make_tokens(
        in_features, num_heads=num_heads, num_value_heads=num_value_heads,
        key_features=key_features, value_features=value_features,
        conv_kernel=conv_kernel, chunk_size=chunk_size, dtype=dtype, **options,
    )
    per_head = lambda: delta_memory.linear(
        in_features, self.num_value_heads, ('embed', 'heads'), **options
    )
    self.beta = per_head()
    self._make_readout(norm_epsilon, **options)
    self.decay = per_head()
    self.gate = delta_memory.linear(
        in_features, self.num_value_heads * value_features,
        ('embed', 'hidden'), **options,
    )
    self._make_head_decay(dt_min, dt_max, **options)

  def _operands(self, q, k, v, x):
    q, k = (
        delta_memory.shared(delta_memory.unit(u), self.num_value_heads)
        for u in (q, k)
    )
    return dict(
        q=q, k=k, v=v, beta=self._rates(self.beta, x),
        log_decay=self._head_decay(x),
    )

  def _gate(self, y, x):
    gate = common.project(self.gate, x).reshape(y.shape)
    return y * jax.nn.silu(gate)
