"""Comba (Hu et al., 2025), https://arxiv.org/abs/2506.02475."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import delta_memory


class Comba(delta_memory.DeltaMemory):
  r"""`GatedDeltaNet` with feedback from the old state, and to the query.

  With :math:`\tilde q_t`, :math:`\tilde k_t` and :math:`v_t` the queries, keys
  and values of `DeltaNet` before they are normalised, and :math:`\beta_t` and
  log decays :math:`g_t` as in `GatedDeltaNet`, for each head

  .. math::
      p_t &= \sigma(b) \tilde k_t, \quad
      q_t = \mathrm{unit}(\tilde q_t - d \, p_t), \quad
      k_t = \mathrm{unit}(\tilde k_t) \\
      S_t &= e^{g_t} S_{t-1}
             + k_t \beta_t (v_t - S_{t-1}^\top \mathrm{unit}(p_t))^\top \\
      y_t &= W_o \bigl(\mathrm{norm}(S_t^\top q_t / \sqrt{K})
             \odot \sigma(W_g x_t)\bigr)

  A correction reads the state *before* the decay, unlike in `GatedDeltaNet`.
  This is the layer of flash-linear-attention. There :math:`p` is normalised,
  so that :math:`\sigma(b)` changes what is subtracted from the query, and the
  correction only by the epsilon of the norm.

  Sizes, state and costs are those of `GatedDeltaNet` (24576 + 2304 numbers if
  `D` is 256). :math:`b` and :math:`d` have one number a head and start at 1;
  the authors' code recommends to start :math:`d` at 0.02 in small models
  (`initial_feedthrough`). All else starts as in `GatedDeltaNet`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = Comba(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, carry.S.shape, y.shape
    ((2, 3, 48), (2, 2, 6, 12), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
  """

  recurrence = staticmethod(ops.dplr_scan)
  recurrence_step = staticmethod(ops.dplr_step)

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int | None = None,
      key_features: int | None = None,
      value_features: int | None = None,
      conv_kernel: int = 4,
      initial_feedthrough: float = 1.0,
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
      key_features: Features `K` of a key. If `None`, `0.75 D / H`; if
        `num_heads` is `None` too, the largest power of two up to 256 that
        divides `0.75 D`.
      value_features: Features `V` of a value; `2 K` if `None`.
      conv_kernel: Taps `C` of the convolutions.
      initial_feedthrough: Initial `d`: how much of a key is subtracted from the
        query.
      dt_min: Smallest initial `softplus` of the bias of the decays.
      dt_max: Largest one.
      norm_epsilon: Added to the mean squares in the norm.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.dplr_scan`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those of the
        decay: `A_log` and `dt_bias`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If sizes do not fit.
    """
    num_heads, key_features = delta_memory.heads_of(
        3 * in_features // 4, 256, num_heads, key_features
    )
    if value_features is None:
      value_features = 2 * key_features
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
    self._make_tokens(
        in_features, num_heads=num_heads, num_value_heads=None,
        key_features=key_features, value_features=value_features,
        conv_kernel=conv_kernel, chunk_size=chunk_size, dtype=dtype, **options,
    )
    linear = lambda n, axis: delta_memory.linear(
        in_features, n, ('embed', axis), **options
    )
    self.beta = linear(num_heads, 'heads')
    self._make_readout(norm_epsilon, **options)
    self.decay = linear(num_heads, 'heads')
    self.gate = linear(num_heads * value_features, 'hidden')
    self._make_head_decay(dt_min, dt_max, **options)
    per_head = lambda value: nnx.Param(
        jnp.full((num_heads,), value, param_dtype), axes=('heads',)
    )
    self.feedback = per_head(1.0)
    self.feedthrough = per_head(initial_feedthrough)

  def _operands(self, q, k, v, x):
    dtype = base.state_dtype(x.dtype)
    per_head = lambda p: p[...].astype(dtype)[:, None]
    p = jax.nn.sigmoid(per_head(self.feedback)) * k
    q = (q - per_head(self.feedthrough) * p).astype(x.dtype)
    q, k, p = map(delta_memory.unit, (q, k, p.astype(x.dtype)))
    return operands(
        q, k, v, p, self._rates(self.beta, x), self._head_decay(x)
    )

  def _gate(self, y, x):
    gate = common.project(self.gate, x).reshape(y.shape)
    return y * jax.nn.sigmoid(gate)


def operands(q, k, v, p, beta, log_decay) -> dict[str, Any]:
  """Returns the operands of `ops.dplr_scan` for Comba.

  Args:
    q: Queries `[..., H, K]`.
    k: Keys to write under `[..., H, K]`.
    v: Values `[..., H, V]`.
    p: Keys that read the state before the decay `[..., H, K]`.
    beta: Rates of correction `[..., H]`.
    log_decay: `[..., H]`.
  """
  return dict(
      q=q, k=(beta[..., None] * k).astype(k.dtype), v=v, a=p, b=None,
      log_decay=jnp.broadcast_to(log_decay[..., None], k.shape),
  )
