"""Multi-head latent attention (DeepSeek-AI, 2024), as in DeepSeek-V2.

https://arxiv.org/abs/2405.04434
"""

import math
from typing import Any, Literal

from flax import nnx
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import attention_window
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import linear_maps
from rnnzoo.layers import rotary

ROTATIONS = ('halves', 'interleaved', 'none')


class LatentAttention(attention_window.WindowedAttention):
  r"""Softmax attention that remembers one short vector for each token.

  .. math::
      c_t &= \mathrm{norm}(W_c x_t), \quad r_t = R_t W_r x_t \\
      q_t &= [W_q x_t \,;\, R_t W_p x_t], \quad
      k_t = [W_k c_t \,;\, r_t], \quad v_t = W_v c_t \\
      o_t &= \sum_{t - W < j \le t} \operatorname{softmax}_j
             \bigl(\langle q_t, k_j \rangle / \sqrt{K + S}\bigr) v_j \\
      y_t &= W_o o_t

  in each of `H` heads. Keys and values of all heads are computed from the
  latent vector :math:`c_t` of `R` features. Only the last `S` features of a
  key, :math:`r_t`, are not: all heads share them, and :math:`R_t` rotates them
  and those of the queries by angles that grow with the position.

  The carry is an `ops.AttentionCache` of one group, a ring buffer of the last
  `W` tokens: :math:`r_t` as `key` and :math:`c_t` as `value`, `W (R + S)`
  numbers a sequence in the compute dtype. `Attention` with as many heads keeps
  `2 W H K`.

  A whole sequence is computed in chunks of queries, as by `Attention`, from the
  keys and values of each head: `H (K + S + V)` multiplications for each token
  in a window. A step never computes these. It maps its queries by the transpose
  of :math:`W_k`, compares them with the latent vectors, averages these, and
  maps the average by :math:`W_v`: `H (2 R + S)` multiplications for each token
  in the window. Besides, a token costs `D (H (K + S) + R + S + H V) + R H (K +
  V)` multiplications in maps.

  DeepSeek-V2 has 128 heads with `K = V = 128` and `S = 64`, `R = 512` and
  `query_rank=1536` where `D` is 5120, and rotates pairs of neighbours,
  `rotation='interleaved'`. Kimi Linear (https://arxiv.org/abs/2510.26692)
  rotates nothing.

  Maps start with variance 1 / fan-in, and the last map with `output_scale`
  times that.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = LatentAttention(16, num_heads=4, latent_features=6, window=8,
    ...                         rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.value.shape, carry.key.shape, y.shape
    ((2, 8, 1, 6), (2, 8, 1, 2), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    num_heads: Number `H` of heads.
    latent_features: Size `R` of a latent vector.
    key_features: Features `K` of a key that are those of a head alone.
    shared_features: Features `S` of a key that all heads share.
    value_features: Size `V` of a value.
    query_rank: Rank of the map to queries, or `None`.
    score_scale: What products of queries and keys are multiplied by.
    rotation: Which features are rotated in pairs.
    window: Tokens `W` that a token sees, itself included.
    on_full: What becomes of the tokens of a sequence after `W` of them.
    out_features: `D`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int = 4,
      latent_features: int | None = None,
      key_features: int | None = None,
      shared_features: int | None = None,
      value_features: int | None = None,
      query_rank: int | None = None,
      score_scale: float | None = None,
      window: int = 1024,
      on_full: Literal['slide', 'error'] = 'slide',
      rotation: Literal['halves', 'interleaved', 'none'] = 'halves',
      max_wavelength: float = 10_000.0,
      norm_epsilon: float = 1e-6,
      init_std: float | None = None,
      output_scale: float = 1.0,
      chunk_size: int = 256,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads.
      latent_features: Size `R` of a latent vector; `4 K` if `None`.
      key_features: Features `K` of a key that each head computes from the
        latent vector; `D / H` if `None`.
      shared_features: Features `S` of a key that all heads share, even if they
        are rotated. If `None`, `K / 2`, rounded down to an even number, but at
        least 2.
      value_features: Size `V` of a value; `K` if `None`.
      query_rank: If not `None`, the map to queries is a map to so many
        features, RMSNorm of these, and a second map.
      score_scale: What products of queries and keys are multiplied by before
        the softmax; `(K + S)**-0.5` if `None`.
      window: Tokens `W` that a token sees, itself included.
      on_full: What happens when a sequence has more tokens, see `Attention`.
      rotation: Which of the `S` features are rotated in pairs: `halves`, one of
        the first half with one of the second half; `interleaved`, neighbours;
        or `none`. To change one order into the other is to permute the columns
        of the maps.
      max_wavelength: Longest wavelength of the rotations, in units of 2 pi
        tokens; the shortest one is 1.
      norm_epsilon: Added to the mean square in the norms.
      init_std: Standard deviation of the initial maps; `fan_in**-0.5` if
        `None`.
      output_scale: Initial variance of the last map, as a multiple of that of
        the other maps.
      chunk_size: Queries in a chunk, whose weights are in memory together.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size is out of range, or does not divide another one.
    """
    key_features = linear_maps.head_size(
        'key_features', key_features, in_features, num_heads
    )
    if latent_features is None:
      latent_features = 4 * key_features
    if shared_features is None:
      shared_features = max(2, key_features // 4 * 2)
    if value_features is None:
      value_features = key_features
    attention_window.check(
        latent_features=latent_features, shared_features=shared_features,
        value_features=value_features, window=window, chunk_size=chunk_size,
        query_rank=1 if query_rank is None else query_rank, on_full=on_full,
    )
    if rotation not in ROTATIONS:
      raise ValueError(
          f'`rotation` must be one of {", ".join(ROTATIONS)}, got {rotation!r}.'
      )
    if rotation != 'none' and shared_features % 2:
      raise ValueError(
          '`shared_features` must be even to be rotated in pairs, got '
          f'{shared_features}.'
      )
    self.in_features = self.out_features = in_features
    self.num_heads = num_heads
    self.latent_features = latent_features
    self.key_features = key_features
    self.shared_features = shared_features
    self.value_features = value_features
    self.query_rank = query_rank
    width = key_features + shared_features
    self.score_scale = width**-0.5 if score_scale is None else score_scale
    self.window, self.on_full = window, on_full
    self.rotation, self.max_wavelength = rotation, max_wavelength
    self.chunk_size = chunk_size
    self.dtype = dtype
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)

    def std(fan_in):
      return fan_in**-0.5 if init_std is None else init_std

    def linear(n, m, axes, scale=1.0):
      return linear_maps.normal_map(
          n, m, axes, std(n) * math.sqrt(scale), **options
      )

    def into_heads(n, features, axis):
      return linear_maps.into_heads(
          n, num_heads, features, nnx.initializers.normal(std(n)), axis=axis,
          **options,
      )

    def norm(features):
      return common.RMSNorm(
          features, epsilon=norm_epsilon, param_dtype=param_dtype
      )

    if query_rank is None:
      self.query = into_heads(in_features, width, 'embed')
    else:
      self.query_in = linear(in_features, query_rank, ('embed', None))
      self.query_norm = norm(query_rank)
      self.query = into_heads(query_rank, width, 'inner')
    self.latent = linear(in_features, latent_features, ('embed', None))
    self.latent_norm = norm(latent_features)
    self.shared = linear(in_features, shared_features, ('embed', None))
    self.key = into_heads(latent_features, key_features, 'inner')
    self.value = into_heads(latent_features, value_features, 'inner')
    self.output = linear(
        num_heads * value_features, in_features, ('hidden', 'embed'),
        output_scale,
    )

  def initialize_carry(
      self, batch_size: int, dtype=None
  ) -> ops.AttentionCache:
    """Returns the carry before the first token: zeros.

    Args:
      batch_size: `B`.
      dtype: The compute dtype, that of latent vectors and shared features.
    """
    return ops.empty_attention_cache(
        batch_size, self.window, 1, self.shared_features,
        jnp.dtype(dtype or self.dtype or jnp.float32),
        value_features=self.latent_features,
    )

  def _attend(self, x, positions, carry, reset, mask):
    own, shared, latent = self._tokens(x, positions)
    keys, values = self._expanded(shared, latent)
    past = ops.AttentionCache(
        *self._expanded(carry.key, carry.value), carry.count
    )
    flags = dict(reset=reset, mask=mask)
    _, y = ops.local_attention(
        jnp.concatenate(own, -1), keys, values, past, **flags,
        chunk_size=self.chunk_size, scale=self.score_scale,
    )
    return ops.extended_cache(shared, latent, carry, **flags), y

  def _attend_step(self, x, carry):
    (q, q_shared), shared, latent = self._tokens(x, carry.count)
    key, value = (
        linear.kernel[...].astype(x.dtype) for linear in (self.key, self.value)
    )
    q = jnp.einsum('bhk,rhk->bhr', q, key)
    join = lambda latent, shared: jnp.concatenate([latent, shared], -1)
    carry = carry._replace(key=join(carry.value, carry.key))
    carry, y = ops.local_attention_step(
        join(q, q_shared), join(latent, shared), latent, carry,
        scale=self.score_scale,
    )
    carry = carry._replace(key=carry.key[..., self.latent_features :])
    return carry, jnp.einsum('bhr,rhv->bhv', y, value)

  def _tokens(self, x, positions):
    """Maps inputs to queries and to what the carry keeps of a token.

    Args:
      x: `[..., D]`.
      positions: `[...]`.

    Returns:
      `((q, q_shared), shared, latent)`: `[..., H, K]` and `[..., H, S]`;
      `[..., 1, S]`; and `[..., 1, R]`.
    """
    u = x
    if self.query_rank is not None:
      u = self.query_norm(common.project(self.query_in, x))
    q = common.project(self.query, u)
    latent = self.latent_norm(common.project(self.latent, x))
    shared = common.project(self.shared, x)[..., None, :]
    q, q_shared = jnp.split(q, [self.key_features], axis=-1)
    q_shared, shared = (
        self._rotated(u, positions) for u in (q_shared, shared)
    )
    return (q, q_shared), shared, latent[..., None, :]

  def _expanded(self, shared, latent):
    """Returns keys `[..., H, K + S]` and values `[..., H, V]` of tokens."""
    latent = latent[..., 0, :]
    key, value = (
        common.project(linear, latent) for linear in (self.key, self.value)
    )
    shared = jnp.broadcast_to(shared, (*key.shape[:-1], shared.shape[-1]))
    return jnp.concatenate([key, shared], -1), value

  def _rotated(self, u, positions):
    """Rotates the shared features `[..., H, S]` of queries or keys."""
    if self.rotation == 'none':
      return u
    if self.rotation == 'interleaved':
      # The order of the result is that of `halves`. Products do not depend on
      # the order.
      pairs = u.reshape(*u.shape[:-1], u.shape[-1] // 2, 2)
      u = pairs.swapaxes(-1, -2).reshape(u.shape)
    return rotary.rotary(
        u, positions, self.shared_features, self.max_wavelength
    )

  def _readout(self, y, x, mask):
    y = y.reshape(*x.shape[:-1], self.num_heads * self.value_features)
    return base.masked(common.project(self.output, y), mask)
