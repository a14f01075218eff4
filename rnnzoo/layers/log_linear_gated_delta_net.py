"""Log-linear Gated DeltaNet (Guo et al., 2025), https://arxiv.org/abs/2506.04761.

It is an interpretation: there are no numbers of the authors to compare with.
"""

from flax import nnx
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import delta_memory
from rnnzoo.layers import gated_delta_net
from rnnzoo.layers import level_scales


class LogLinearGatedDeltaNet(gated_delta_net.GatedDeltaNet):
  r"""`GatedDeltaNet` with about `log2(T)` states, which a token weighs.

  With :math:`q, k, v, \beta, g` as in `GatedDeltaNet`, for each head

  .. math::
      \lambda_t^{(\ell)} &= \mathrm{softplus}\bigl(
          L^{(\ell)} W_\ell x_t\bigr), \quad
      M_t = e^{g_t} (I - \beta_t k_t k_t^\top) \\
      o_t &= \sum_{s \le t} \lambda_t^{(\ell(t, s))}
             v_s \beta_s k_s^\top M_{s+1}^\top \dots M_t^\top q_t / \sqrt{K}
             \\
      y_t &= W_o \bigl(\mathrm{norm}(o_t) \odot \mathrm{silu}(W_g x_t)\bigr)

  The level :math:`\ell(t, s)` is that of `LogLinearMamba2`, and
  `ops.log_linear_delta_rule` is the recurrence. All levels are corrected alike,
  so with scales of 1 this is `GatedDeltaNet`. This form is an interpretation of
  the paper. The map to levels has no bias, and `L` starts at 1.

  With `E` levels, the state is `(E - 1) G K V` numbers a sequence, and those of
  the convolutions. Take no more levels than the sequences need: `num_levels`
  hold `2**(num_levels - 1)` tokens. A longer sequence is an error where its
  length is known. Under `jax.jit`, a carry that is passed on cannot be checked:
  there the last level also holds all older tokens.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = LogLinearGatedDeltaNet(16, num_heads=2, num_levels=5,
    ...                                rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.S.levels.shape, carry.S.count, y.shape
    ((2, 2, 4, 6, 12), Array([11, 11], dtype=int32), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads of queries and keys.
    num_value_heads: Number `G` of heads of values.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
    num_levels: `E`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_levels: int = 15,
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
      num_levels: Number `E` of levels, 2 to 25; the default is for sequences of
        up to 16384 tokens.
      num_heads: As in `GatedDeltaNet`, and so are those below.
      num_value_heads: Likewise.
      key_features: Likewise.
      value_features: Likewise.
      conv_kernel: Likewise.
      activation: Likewise.
      allow_negative_eigenvalues: Likewise.
      dt_min: Likewise.
      dt_max: Likewise.
      norm_epsilon: Likewise.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.log_linear_delta_rule`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for `A_log`,
        `dt_bias` and `L`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If sizes do not fit, or the activation is unknown.
    """
    super().__init__(
        in_features, num_heads=num_heads, num_value_heads=num_value_heads,
        key_features=key_features, value_features=value_features,
        conv_kernel=conv_kernel, activation=activation,
        allow_negative_eigenvalues=allow_negative_eigenvalues, dt_min=dt_min,
        dt_max=dt_max, norm_epsilon=norm_epsilon, chunk_size=chunk_size,
        dtype=dtype, param_dtype=param_dtype, rngs=rngs,
    )
    self.num_levels = num_levels
    self.level_proj, self.L = level_scales.make(
        in_features, self.num_value_heads, num_levels, use_bias=False,
        param_dtype=param_dtype, rngs=rngs,
    )

  def initialize_carry(
      self, batch_size: int, dtype=None
  ) -> delta_memory.DeltaNetCarry:
    """Returns the carry before the first token: zeros."""
    carry = super().initialize_carry(batch_size, dtype)
    return carry._replace(S=ops.empty_level_state(
        batch_size, self.num_value_heads, self.num_levels, self.key_features,
        self.value_features, base.state_dtype(carry.conv.dtype),
    ))

  def _operands(self, q, k, v, x):
    scales = level_scales.of(self.level_proj, self.L, x)
    return super()._operands(q, k, v, x) | dict(level_scales=scales)

  def _recur(self, operands, S, flags):
    return ops.log_linear_delta_rule(
        **operands, state=S, scale=self.key_features**-0.5,
        chunk_size=self.chunk_size, **flags,
    )

  def _recur_step(self, operands, S, mask):
    return ops.log_linear_delta_rule_step(
        **operands, state=S, scale=self.key_features**-0.5, mask=mask
    )
