"""Gated attention (Qiu et al., 2025), https://arxiv.org/abs/2505.06708."""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import attention
from rnnzoo.layers import common
from rnnzoo.layers import linear_maps


class GatedAttention(attention.Attention):
  r"""Softmax attention whose output passes a sigmoid gate, as in Qwen3-Next.

  .. math::
      q_t &= R_t \, \mathrm{norm}(W_q x_t), \quad
      k_t = R_t \, \mathrm{norm}(W_k x_t), \quad v_t = W_v x_t \\
      o_t &= \sum_{t - W < j \le t} \operatorname{softmax}_j
             \bigl(\langle q_t, k_j \rangle / \sqrt{K}\bigr) v_j \\
      y_t &= W_o (\sigma(W_g x_t) \odot o_t)

  in each of `H` heads of `K` features. This is `Attention`, with its window,
  its groups of heads and its carry, and three differences: the gate; RMSNorm of
  every query and key, with one scale for all heads; and `R_t` rotates only the
  first quarter of the features of a head. The gate lets a head read nothing,
  for which plain attention has to look at some token.

  The carry is that of `Attention`: the last `W` keys and values. A token costs
  `3 D H K + 2 D G K` multiplications in maps and `2 H K` for each token in its
  window.

  Qwen3-Next has 16 heads of 256 features in 2 groups where `D` is 2048, and
  `init_std=0.02`. It stores the scales of the norms less 1, `qk_norm='rms1'`,
  and `W_q` and `W_g` in one matrix, head by head.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = GatedAttention(32, num_heads=4, num_kv_heads=1, window=8,
    ...                        rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 32))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.key.shape, carry.count, y.shape
    ((2, 8, 1, 8), Array([11, 11], dtype=int32), (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    num_heads: Number `H` of heads.
    num_kv_heads: Number `G` of heads of keys and values.
    head_features: Size `K` of a query, a key, a value.
    hidden_features: `H K`.
    window: Tokens `W` that a token sees, itself included.
    on_full: What becomes of the tokens of a sequence after `W` of them.
    out_features: `D`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int = 4,
      num_kv_heads: int | None = None,
      head_features: int | None = None,
      window: int = 1024,
      on_full: Literal['slide', 'error'] = 'slide',
      rotary_fraction: float = 0.25,
      max_wavelength: float = 10_000.0,
      qk_norm: Literal['rms', 'rms1', 'rms_all'] = 'rms',
      norm_epsilon: float = 1e-6,
      init_std: float | None = None,
      chunk_size: int = 256,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads.
      num_kv_heads: Number `G` of heads of keys and values, a divisor of `H`;
        `H` if `None`.
      head_features: Size `K` of a head; `D / H` if `None`.
      window: Tokens `W` that a token sees, itself included.
      on_full: What happens when a sequence has more tokens, see `Attention`.
      rotary_fraction: The fraction of the features of a head, from the first,
        that is rotated; 0 for none.
      max_wavelength: Longest wavelength of the rotations, in units of 2 pi
        tokens; the shortest one is 1.
      qk_norm: The kind of the norms, see `Attention`.
      norm_epsilon: Added to the mean square in the norms.
      init_std: Standard deviation of the initial maps; `fan_in**-0.5` if
        `None`.
      chunk_size: Queries in a chunk, whose weights are in memory together.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size is out of range, or does not divide another one.
    """
    super().__init__(
        in_features, num_heads=num_heads, num_kv_heads=num_kv_heads,
        head_features=head_features, window=window, on_full=on_full,
        rotary_fraction=rotary_fraction, max_wavelength=max_wavelength,
        normalize_qk=True, qk_norm=qk_norm, norm_epsilon=norm_epsilon,
        init_std=init_std, chunk_size=chunk_size, dtype=dtype,
        param_dtype=param_dtype, rngs=rngs,
    )
    self.gate = linear_maps.normal_map(
        in_features, self.hidden_features, ('embed', 'hidden'),
        in_features**-0.5 if init_std is None else init_std,
        param_dtype=param_dtype, rngs=rngs,
    )

  def _readout(self, y, x, mask):
    gate = jax.nn.sigmoid(common.project(self.gate, x))
    return super()._readout(gate.reshape(y.shape) * y, x, mask)
