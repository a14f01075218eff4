"""DeltaProduct (Siems et al., 2025), https://arxiv.org/abs/2502.10297."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import common
from rnnzoo.layers import delta_memory


class GatedDeltaProduct(delta_memory.DeltaMemory):
  r"""`GatedDeltaNet` with several corrections of the state for each token.

  Each of `H` heads has one query :math:`q_t` and `N` keys :math:`k_{t,j}`,
  values :math:`v_{t,j}` and rates :math:`\beta_{t,j}` for a token, with the
  maps, convolutions and norms of `DeltaNet`. The log decay :math:`g_t` is that
  of `GatedDeltaNet`, once a token and before the first correction:

  .. math::
      S_{t,0} &= e^{g_t} S_{t-1} \\
      S_{t,j} &= S_{t,j-1}
                 + k_{t,j} \beta_{t,j} (v_{t,j} - S_{t,j-1}^\top k_{t,j})^\top,
                 \quad j = 1, ..., N \\
      S_t &= S_{t,N}, \quad y_t = W_o \bigl(\mathrm{norm}(S_t^\top q_t /
             \sqrt{K}) \odot \mathrm{silu}(W_g x_t)\bigr)

  With rates in (0, 2), the default, a token can reflect the state `N` times.
  So two corrections can rotate it, and more can permute more of its features:
  a layer tracks larger groups than with one. With one correction this is
  `GatedDeltaNet` with negative eigenvalues.

  Sizes are those of `GatedDeltaNet`. The state is `H K V` numbers a sequence,
  and `(C - 1) H (K + N (K + V))` for the convolutions (24576 + 4032 if `D` is
  256). A token costs `D H (K + N (K + V) + 2 V)` multiplications in maps, and
  `N` times as many for the state as in `DeltaNet`. Initial values are as in
  `GatedDeltaNet`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = GatedDeltaProduct(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, carry.S.shape, y.shape
    ((2, 3, 84), (2, 2, 6, 12), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads.
    num_householder: Corrections `N` for each token.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
  """

  recurrence = staticmethod(ops.delta_product)
  recurrence_step = staticmethod(ops.delta_product_step)

  def __init__(
      self,
      in_features: int,
      *,
      num_householder: int = 2,
      num_heads: int | None = None,
      key_features: int | None = None,
      value_features: int | None = None,
      conv_kernel: int = 4,
      activation: str = 'silu',
      allow_negative_eigenvalues: bool = True,
      use_decay: bool = True,
      use_output_gate: bool = True,
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
      num_householder: Corrections `N` for each token.
      num_heads: Number `H` of heads; `0.75 D / K` if `None`.
      key_features: Features `K` of a key. If `None`, `0.75 D / H`; if
        `num_heads` is `None` too, the largest power of two up to 256 that
        divides `0.75 D`.
      value_features: Features `V` of a value; `2 K` if `None`.
      conv_kernel: Taps `C` of the convolutions.
      activation: The activation of queries and keys: `silu`, `relu`, `elu`
        (plus 1) or `identity`.
      allow_negative_eigenvalues: Whether `beta` is in (0, 2) instead of (0, 1).
      use_decay: Whether the state decays; if not, this is DeltaProduct without
        "gated".
      use_output_gate: Whether there is an output gate.
      dt_min: Smallest initial `softplus` of the bias of the decays.
      dt_max: Largest one.
      norm_epsilon: Added to the mean squares in the norm.
      chunk_size: Corrections in a chunk, a power of two; if `None`, the default
        of `ops.delta_rule`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those of the
        decay: `A_log` and `dt_bias`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If sizes do not fit, or the activation is unknown.
    """
    if num_householder < 1:
      raise ValueError(
          f'`num_householder` must be at least 1, got {num_householder}.'
      )
    num_heads, key_features = delta_memory.heads_of(
        3 * in_features // 4, 256, num_heads, key_features
    )
    if value_features is None:
      value_features = 2 * key_features
    self.num_householder = num_householder
    self.activation = delta_memory.checked_activation(activation)
    self.allow_negative_eigenvalues = allow_negative_eigenvalues
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
    self._make_tokens(
        in_features, num_heads=num_heads, num_value_heads=None,
        key_features=key_features, value_features=value_features,
        conv_kernel=conv_kernel, chunk_size=chunk_size, dtype=dtype,
        num_writes=num_householder, **options,
    )
    linear = lambda n, axis: delta_memory.linear(
        in_features, n, ('embed', axis), **options
    )
    self.beta = linear(num_householder * num_heads, 'heads')
    self._make_readout(norm_epsilon, **options)
    self.use_decay = use_decay
    if use_decay:
      self.decay = linear(num_heads, 'heads')
      self._make_head_decay(dt_min, dt_max, **options)
    self.gate = (
        linear(num_heads * value_features, 'hidden') if use_output_gate
        else None
    )

  def _operands(self, q, k, v, x):
    if self.num_writes == 1:
      k, v = jnp.expand_dims(k, -3), jnp.expand_dims(v, -3)
    beta = self._rates(self.beta, x)
    return dict(
        q=delta_memory.unit(q), k=delta_memory.unit(k), v=v,
        beta=beta.reshape(*x.shape[:-1], self.num_writes, self.num_heads),
        log_decay=self._head_decay(x) if self.use_decay else None,
    )

  def _gate(self, y, x):
    if self.gate is None:
      return y
    gate = common.project(self.gate, x).reshape(y.shape)
    return y * jax.nn.silu(gate)
