"""Linear attention (Katharopoulos et al., 2020).

https://arxiv.org/abs/2006.16236
"""

from collections.abc import Callable
from typing import Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import linear_maps
from rnnzoo.layers import linear_memory

_FEATURE_MAPS: dict[str, Callable[[jax.Array], jax.Array]] = dict(
    elu=lambda u: jax.nn.elu(u) + 1,
    relu=jax.nn.relu,
    identity=lambda u: u,
)


class LinearAttention(linear_memory.LinearMemory):
  r"""Attention without softmax: one matrix stores all tokens, without decay.

  Katharopoulos et al. (2020): for each of `H` heads,

  .. math::
      q_t &= \phi(W_q x_t), \quad k_t = \phi(W_k x_t), \quad v_t = W_v x_t \\
      S_t &= S_{t-1} + k_t v_t^\top, \quad z_t = z_{t-1} + k_t \\
      y_t &= W_o \frac{S_t^\top q_t}{z_t^\top q_t + \epsilon}

  with :math:`\phi(u) = \mathrm{elu}(u) + 1`. The normaliser `z` is an
  additional column of `S`, for a value that is always 1. So the state is `H K
  (V + 1)` numbers a sequence (16640 if `D` is 256, with four heads). A token
  costs `2 D H (K + V)` multiplications in maps, and for the state `2 H K V` in
  a step, or about `H (Q + 2 K) V + H Q K` in parallel, in chunks of `Q` tokens
  (`ops.linear_attention`).

  The state never decays. Later work replaces the normaliser by a norm of each
  head (https://arxiv.org/abs/2210.10340): `use_normalizer=False` and a `norm`.
  Queries are then multiplied by `K**-0.5`. Biases, initial maps (the PyTorch
  defaults) and epsilon are those of the code of the authors.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = LinearAttention(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> S, y = layer(x)                               # y: [B, T, D]
    >>> S, y_next = layer.step(S, x[:, -1])           # [B, D]
    >>> S.shape, y.shape
    ((2, 2, 8, 9), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
    hidden_features: `H V`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int = 4,
      key_features: int | None = None,
      value_features: int | None = None,
      feature_map: Literal['elu', 'relu', 'identity'] = 'elu',
      use_normalizer: bool = True,
      norm: Literal['rms', 'layer'] | None = None,
      epsilon: float = 1e-6,
      norm_epsilon: float = 1e-5,
      use_bias: bool = True,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads.
      key_features: Features `K` of a key; `D / H` if `None`.
      value_features: Features `V` of a value; `D / H` if `None`.
      feature_map: The map of queries and keys: `elu` (plus 1), `relu` or
        `identity`.
      use_normalizer: Whether outputs are divided by the sum of the weights,
        which must then not be negative.
      norm: Norm of each head, with one scale for all: `rms`, `layer` or `None`.
      epsilon: Added to the sum of the weights.
      norm_epsilon: Added to the variance or the mean square in the norm.
      use_bias: Whether the maps have biases.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.linear_attention`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide `D`, or an option is unknown or
        excludes another one.
    """
    if feature_map not in _FEATURE_MAPS:
      raise ValueError(
          f'`feature_map` must be one of {", ".join(_FEATURE_MAPS)}, got '
          f'{feature_map!r}.'
      )
    if use_normalizer and feature_map == 'identity':
      raise ValueError(
          "`use_normalizer` divides by a sum that may be zero with "
          "`feature_map='identity'`."
      )
    self.in_features = self.out_features = d = in_features
    self.num_heads = num_heads
    self.key_features = linear_maps.head_size(
        'key_features', key_features, d, num_heads
    )
    self.value_features = linear_maps.head_size(
        'value_features', value_features, d, num_heads
    )
    self.hidden_features = num_heads * self.value_features
    self.feature_map = feature_map
    self.use_normalizer = use_normalizer
    self.epsilon = epsilon
    self.chunk_size = chunk_size
    self.dtype = dtype
    init = initializers.uniform_fan_in
    options: dict[str, Any] = dict(
        use_bias=use_bias, param_dtype=param_dtype, rngs=rngs
    )
    into = lambda features: linear_maps.into_heads(
        d, num_heads, features, init(d), bias_init=init(d), **options
    )
    self.query = into(self.key_features)
    self.key = into(self.key_features)
    self.value = into(self.value_features)
    self.norm = None if norm is None else common.HeadNorm(
        num_heads, self.value_features, kind=norm, epsilon=norm_epsilon,
        share=True, param_dtype=param_dtype,
    )
    hidden = self.hidden_features
    self.output = linear_maps.out_of_heads(
        hidden, d, init(hidden), bias_init=init(hidden), **options
    )

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes of the state of one sequence.

    They are `(H, K, V)`, or `(H, K, V + 1)` with a normaliser.
    """
    columns = self.value_features + self.use_normalizer
    return (self.num_heads, self.key_features, columns)

  def _operands(self, x):
    q, k, v = (
        common.project(linear, x)
        for linear in (self.query, self.key, self.value)
    )
    q, k = (_FEATURE_MAPS[self.feature_map](u) for u in (q, k))
    if self.use_normalizer:
      # In float32, because both sums are divided later.
      v = v.astype(base.state_dtype(x.dtype))
      v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    scale = 1.0 if self.use_normalizer else self.key_features**-0.5
    return dict(q=q, k=k, v=v, scale=scale)

  def _readout(self, o, x):
    if self.use_normalizer:
      o = o[..., :-1] / (o[..., -1:] + self.epsilon)
    if self.norm is not None:
      o = self.norm(o)
    y = o.astype(x.dtype).reshape(*x.shape[:-1], self.hidden_features)
    return common.project(self.output, y)
