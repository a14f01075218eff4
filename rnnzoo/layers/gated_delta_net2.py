"""Gated DeltaNet-2 (Hatamizadeh et al., 2026).

https://arxiv.org/abs/2605.22791
"""

from typing import Any

from flax import nnx
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import delta_memory
from rnnzoo.layers import initializers
from rnnzoo.layers import kda
from rnnzoo.layers import linear_maps


class GatedDeltaNet2(kda.KDA):
  r"""`KDA` with a gate for what is erased and one for what is written.

  With queries, keys, values, log decays :math:`g` and the output gate as in
  `KDA`, for each head

  .. math::
      b_t &= \sigma(W_b x_t), \quad w_t = \sigma(W_w x_t) \\
      S'_t &= \mathrm{diag}(e^{g_t}) S_{t-1} \\
      S_t &= S'_t + k_t (w_t \odot v_t - S_t'^\top (b_t \odot k_t))^\top \\
      y_t &= W_o \bigl(\mathrm{norm}(S_t^\top q_t / \sqrt{K})
             \odot \sigma(W_g^2 W_g^1 x_t + b_g)\bigr)

  The erase gate :math:`b` has a number for each feature of a key, the write
  gate :math:`w` one for each feature of a value. If both are one number
  :math:`\beta`, this is `KDA`. Decays and erase gates belong to the `H` heads
  of keys; `G` heads of values share them. The state is as large as that of
  `KDA` (32768 + 2304 numbers if `D` is 256), and a token costs `D (H K + G V)`
  multiplications more.

  The bias `b_g` is that of flash-linear-attention. All parameters start as in
  `KDA`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = GatedDeltaNet2(16, num_heads=2, rngs=nnx.Rngs(0))
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
      allow_negative_eigenvalues: bool = False,
      use_gate_bias: bool = True,
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
      allow_negative_eigenvalues: Whether the erase gates are in (0, 2) instead
        of (0, 1).
      use_gate_bias: Whether the map to the output gate has a bias.
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
    super().__init__(
        in_features,
        num_heads=num_heads,
        num_value_heads=num_value_heads,
        key_features=key_features,
        value_features=value_features,
        conv_kernel=conv_kernel,
        allow_negative_eigenvalues=allow_negative_eigenvalues,
        use_gate_bias=use_gate_bias,
        dt_min=dt_min,
        dt_max=dt_max,
        norm_epsilon=norm_epsilon,
        chunk_size=chunk_size,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )

  @property
  def decay_heads(self) -> int:
    """Number of heads that have decays of their own."""
    return self.num_heads

  def _make_rates(self, **options):
    d, init = self.in_features, initializers.uniform_fan_in(self.in_features)
    self.erase = linear_maps.into_heads(
        d, self.num_heads, self.key_features, init, **options
    )
    self.write = linear_maps.into_heads(
        d, self.num_value_heads, self.value_features, init, **options
    )

  def _operands(self, q, k, v, x):
    erase, write = self._rates(self.erase, x), self._gates(self.write, x)
    q, k, erase, log_decay = (
        delta_memory.shared(u, self.num_value_heads)
        for u in (
            delta_memory.unit(q), delta_memory.unit(k), erase,
            self._log_decay(x),
        )
    )
    return operands(q, k, v, erase, write, log_decay)


def operands(q, k, v, erase, write, log_decay) -> dict[str, Any]:
  """Returns the operands of `ops.dplr_scan` for Gated DeltaNet-2.

  Args:
    q: Queries `[..., H, K]`.
    k: Keys `[..., H, K]`.
    v: Values `[..., H, V]`.
    erase: Erase gates `[..., H, K]`.
    write: Write gates `[..., H, V]`.
    log_decay: `[..., H, K]`.
  """
  erased = ops.decayed((erase * k).astype(k.dtype), log_decay)
  return dict(
      q=q, k=k, v=(write * v).astype(v.dtype), a=erased, b=None,
      log_decay=log_decay,
  )
