"""Softmax attention with a window and rotary positions (Vaswani et al., 2017).

https://arxiv.org/abs/1706.03762
"""

import math
from typing import Literal

from flax import nnx
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import attention_window
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import linear_maps
from rnnzoo.layers import rotary

AttentionCarry = ops.AttentionCache

QK_NORMS = ('rms', 'rms1', 'rms_all')


class Attention(attention_window.WindowedAttention):
  r"""Softmax attention of a token to itself and to the `W - 1` before it.

  .. math::
      q_t &= R_t W_q x_t, \quad k_t = R_t W_k x_t, \quad v_t = W_v x_t \\
      o_t &= \sum_{t - W < j \le t} \operatorname{softmax}_j
             \bigl(\langle q_t, k_j \rangle / \sqrt{K}\bigr) v_j \\
      y_t &= W_o o_t

  in each of `H` heads of `K` features. `G` groups of heads share keys and
  values (https://arxiv.org/abs/1706.03762, https://arxiv.org/abs/2305.13245).
  `R_t` rotates pairs of features by angles that grow with the position
  (https://arxiv.org/abs/2104.09864), so that scores depend on distances.

  In a Transformer, the window is as long as the context. Griffin has local
  attention (https://arxiv.org/abs/2402.19427). That of RecurrentGemma has one
  group, rotates half of the features, and attends to 2048 tokens and the token
  itself, which is `window=2049` here; only the last map has a bias.

  The carry is a ring buffer of the last `W` rotated keys and values in the
  compute dtype, `2 W G K` numbers a sequence, and the number of tokens so far.
  Its shape is fixed. A token costs `2 D H K + 2 D G K` multiplications in maps
  and `2 H K` for each token in its window. Whole sequences are computed in
  chunks of queries (`ops.local_attention`): nothing is quadratic in `T`, and
  only the weights of one chunk are in memory.

  Attention that was trained to see every token of its sequence has no window.
  With `on_full='error'` it never becomes one: when the carry has `W` tokens, a
  further one is an error, or inside of `jax.jit`, where nothing can be raised,
  its output is NaN.

  A NaN among the keys or values makes exactly those outputs NaN whose window
  contains it: after `W` tokens it is gone.

  Maps start with variance 1 / fan-in, and the last map with `output_scale`
  times that (RecurrentGemma: 2 / depth). GPT-2 has `init_std=0.02`, biases in
  all maps, no rotation and `output_scale=1 / (2 * depth)`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = Attention(16, num_heads=4, num_kv_heads=1, window=8,
    ...                   rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.key.shape, carry.count, y.shape
    ((2, 8, 1, 4), Array([11, 11], dtype=int32), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    num_heads: Number `H` of heads.
    num_kv_heads: Number `G` of heads of keys and values.
    head_features: Size `K` of a query, a key, a value.
    hidden_features: `H K`.
    window: Tokens `W` that a token sees, itself included.
    on_full: What becomes of the tokens of a sequence after `W` of them.
    out_features: Size of an output.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int = 4,
      num_kv_heads: int | None = None,
      head_features: int | None = None,
      out_features: int | None = None,
      window: int = 1024,
      on_full: Literal['slide', 'error'] = 'slide',
      rotary_fraction: float = 1.0,
      max_wavelength: float = 10_000.0,
      score_scale: float | None = None,
      normalize_qk: bool = False,
      qk_norm: Literal['rms', 'rms1', 'rms_all'] = 'rms',
      norm_epsilon: float = 1e-6,
      use_bias: bool = False,
      use_output_bias: bool = False,
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
      num_kv_heads: Number `G` of heads of keys and values, a divisor of `H`. 1
        is multi-query attention; `H` if `None`.
      head_features: Size `K` of a head; `D / H` if `None`.
      out_features: Size of an output; `D` if `None`.
      window: Tokens `W` that a token sees, itself included.
      on_full: What happens when a sequence has more tokens than `W`: `slide`,
        each sees the last `W`; or `error`, since each has to see all.
      rotary_fraction: The fraction of the features of a head, from the first,
        that is rotated; 0 for none.
      max_wavelength: Longest wavelength of the rotations, in units of 2 pi
        tokens; the shortest one is 1.
      score_scale: What products of queries and keys are multiplied by before
        the softmax; `1 / sqrt(K)` if `None`.
      normalize_qk: Whether queries and keys are normalised before the rotation.
      qk_norm: How they are: `rms`, RMSNorm over each head, with one scale for
        all heads; `rms1`, the same with a factor of 1 plus the scale; or
        `rms_all`, RMSNorm over all heads together (OLMo 2).
      norm_epsilon: Added to the mean square in those norms.
      use_bias: Whether the maps to queries, keys and values have biases.
      use_output_bias: Whether the last map has a bias.
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
    if head_features is None:
      if num_heads < 1 or in_features % num_heads:
        raise ValueError(
            f'`num_heads` must divide `in_features` = {in_features}, got '
            f'{num_heads}; or give `head_features`.'
        )
      head_features = in_features // num_heads
    groups = num_heads if num_kv_heads is None else num_kv_heads
    if groups < 1 or num_heads % groups:
      raise ValueError(
          f'`num_kv_heads` must divide `num_heads` = {num_heads}, got {groups}.'
      )
    attention_window.check(
        num_heads=num_heads, head_features=head_features, window=window,
        chunk_size=chunk_size, on_full=on_full,
    )
    out_features = in_features if out_features is None else out_features
    if qk_norm not in QK_NORMS:
      raise ValueError(
          f'`qk_norm` must be one of {", ".join(QK_NORMS)}, got {qk_norm!r}.'
      )
    rotated = rotary_fraction * head_features
    if not 0 <= rotary_fraction <= 1 or rotated % 2:
      raise ValueError(
          '`rotary_fraction` must be in [0, 1] and give an even number of '
          f'{head_features} features, got {rotary_fraction}.'
      )
    self.in_features, self.out_features = in_features, out_features
    self.num_heads, self.num_kv_heads = num_heads, groups
    self.head_features = head_features
    self.hidden_features = hidden = num_heads * head_features
    self.window = window
    self.on_full = on_full
    self.qk_norm = qk_norm
    self.rotary_features = int(rotated)
    self.max_wavelength = max_wavelength
    self.score_scale = (
        head_features**-0.5 if score_scale is None else score_scale
    )
    self.chunk_size = chunk_size
    self.dtype = dtype

    def linear(n, m, axes, use_bias, scale=1.0):
      std = n**-0.5 if init_std is None else init_std
      return linear_maps.normal_map(
          n, m, axes, std * math.sqrt(scale), use_bias=use_bias,
          param_dtype=param_dtype, rngs=rngs,
      )

    into, back = ('embed', 'hidden'), ('hidden', 'embed')
    shared = groups * head_features
    self.query = linear(in_features, hidden, into, use_bias)
    self.key = linear(in_features, shared, into, use_bias)
    self.value = linear(in_features, shared, into, use_bias)
    self.output = linear(
        hidden, out_features, back, use_output_bias, output_scale
    )

    def norm(features):
      one = common.OneRMSNorm if qk_norm == 'rms1' else common.RMSNorm
      features = features if qk_norm == 'rms_all' else head_features
      return one(features, epsilon=norm_epsilon, param_dtype=param_dtype)

    self.query_norm = norm(hidden) if normalize_qk else None
    self.key_norm = norm(shared) if normalize_qk else None

  def initialize_carry(self, batch_size: int, dtype=None) -> AttentionCarry:
    """Returns the carry before the first token: zeros.

    Args:
      batch_size: `B`.
      dtype: The compute dtype, that of keys and values.
    """
    return ops.empty_attention_cache(
        batch_size, self.window, self.num_kv_heads, self.head_features,
        jnp.dtype(dtype or self.dtype or jnp.float32),
    )

  def _attend(self, x, positions, carry, reset, mask):
    return ops.local_attention(
        *self._tokens(x, positions), carry, reset=reset, mask=mask,
        chunk_size=self.chunk_size,
    )

  def _attend_step(self, x, carry):
    return ops.local_attention_step(*self._tokens(x, carry.count), carry)

  def _tokens(self, x, positions):
    """Maps `[..., D]` to queries `[..., H, K]`, keys, values `[..., G, K]`."""
    def heads(name, number):
      return self._map(name, x).reshape(
          *x.shape[:-1], number, self.head_features
      )

    q = heads('query', self.num_heads)
    k = heads('key', self.num_kv_heads)
    v = heads('value', self.num_kv_heads)
    q = self._normalized(self.query_norm, q)
    factor = self.score_scale * self.head_features**0.5
    if abs(factor - 1) > 1e-12:  # `local_attention` divides by that root.
      q = q * jnp.asarray(factor, q.dtype)
    k = self._normalized(self.key_norm, k)
    if self.rotary_features:
      rotate = lambda u: rotary.rotary(
          u, positions, self.rotary_features, self.max_wavelength
      )
      q, k = rotate(q), rotate(k)
    return q, k, v

  def _map(self, name, x):
    """Applies the map to `query`, `key` or `value`."""
    return common.project(getattr(self, name), x)

  def _normalized(self, norm, u):
    """Applies a norm of queries or keys, if there is one, to all heads."""
    if norm is None:
      return u
    if self.qk_norm != 'rms_all':
      return norm(u)
    return norm(u.reshape(*u.shape[:-2], -1)).reshape(u.shape)

  def _readout(self, y, x, mask):
    """Maps what the heads read `[..., H, K]`, and `x`, to `[..., D]`."""
    y = y.reshape(*x.shape[:-1], self.hidden_features)
    return base.masked(common.project(self.output, y), mask)
