"""GLA (Yang et al., 2023), https://arxiv.org/abs/2312.06635."""

from typing import Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import linear_maps
from rnnzoo.layers import linear_memory


class GLA(linear_memory.LinearMemory):
  r"""Linear attention with a decay for each key feature.

  For each of `H` heads,

  .. math::
      q_t &= W_q x_t, \quad k_t = W_k x_t, \quad v_t = W_v x_t \\
      \alpha_t &= \sigma(W_\alpha^2 W_\alpha^1 x_t + b_\alpha)^{1 / \tau} \\
      S_t &= \mathrm{diag}(\alpha_t) S_{t-1} + k_t v_t^\top, \quad
      o_t = S_t^\top q_t / \sqrt{K} \\
      y_t &= W_o (\mathrm{silu}(W_r x_t + b_r) \odot \mathrm{norm}(o_t))

  The map to the decays :math:`\alpha` has rank `R`, and :math:`\tau` keeps them
  near 1. The state is `H K V` numbers a sequence (8192 if `D` is 256, with four
  heads). A token costs `D H (2 K + 3 V) + R (D + H K)` multiplications in maps,
  a little more than `4 D^2` by default, and for the state `3 H K V` in a step,
  or about `H (Q + 2 K) V + H Q K` in parallel, in chunks of `Q` tokens
  (`ops.linear_attention`).

  Sizes, the norm (which subtracts the mean and has no parameters) and `b_r` are
  as in the first code of the authors, of which we have seen copies. Their
  library flash-linear-attention corresponds to `norm='rms',
  use_norm_scale=True, use_gate_bias=False`. The first code divides keys instead
  of queries by the root of `K`, which changes the state only. Maps to queries,
  keys and decays start as in RetNet, Glorot uniform with a gain of
  :math:`2^{-5/2}`, all others as in PyTorch.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = GLA(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> S, y = layer(x)                               # y: [B, T, D]
    >>> S, y_next = layer.step(S, x[:, -1])           # [B, D]
    >>> S.shape, y.shape
    ((2, 2, 4, 8), (2, 10, 16))

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
      decay_rank: int = 16,
      decay_temperature: float = 16.0,
      norm: Literal['layer', 'rms'] = 'layer',
      norm_epsilon: float = 1e-5,
      use_norm_scale: bool = False,
      use_gate_bias: bool = True,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads.
      key_features: Features `K` of a key; `D / (2 H)` if `None`.
      value_features: Features `V` of a value; `D / H` if `None`.
      decay_rank: Rank `R` of the map to decays.
      decay_temperature: `tau`: logarithms of decays are divided by it.
      norm: Norm of each head: `layer` or `rms`.
      norm_epsilon: Added to the variance or the mean square in the norm.
      use_norm_scale: Whether the norm has a scale, one for all heads.
      use_gate_bias: Whether the map to the output gate has a bias.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.linear_attention`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for the bias of the
        decays.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide the features, or a number is out of
        range.
    """
    for name, value in dict(
        decay_rank=decay_rank, decay_temperature=decay_temperature
    ).items():
      if not value > 0:
        raise ValueError(f'`{name}` must be positive, got {value}.')
    self.in_features = self.out_features = d = in_features
    self.num_heads = num_heads
    size = linear_maps.head_size
    self.key_features = size('key_features', key_features, d // 2, num_heads)
    self.value_features = size('value_features', value_features, d, num_heads)
    self.hidden_features = hidden = num_heads * self.value_features
    self.decay_temperature = decay_temperature
    self.chunk_size = chunk_size
    self.dtype = dtype
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
    into = linear_maps.into_heads
    small, usual = initializers.small_glorot(), initializers.uniform_fan_in
    self.query = into(d, num_heads, self.key_features, small, **options)
    self.key = into(d, num_heads, self.key_features, small, **options)
    self.value = into(d, num_heads, self.value_features, usual(d), **options)
    self.decay_in = nnx.Linear(
        d,
        decay_rank,
        use_bias=False,
        kernel_init=small,
        kernel_metadata=dict(axes=('embed', None)),
        **options,
    )
    self.decay_out = into(
        decay_rank, num_heads, self.key_features, small, axis='inner', **options
    )
    # Parameters of the decay are float32 at least.
    self.decay_bias = nnx.Param(
        usual(decay_rank)(
            rngs.params(),
            (num_heads, self.key_features),
            base.state_dtype(param_dtype),
        ),
        axes=('heads', None),
    )
    self.gate = into(
        d, num_heads, self.value_features, usual(d), bias_init=usual(d),
        use_bias=use_gate_bias, **options,
    )
    self.norm = common.HeadNorm(
        num_heads, self.value_features, kind=norm, epsilon=norm_epsilon,
        use_scale=use_norm_scale, share=True, param_dtype=param_dtype,
    )
    self.output = linear_maps.out_of_heads(
        hidden, d, usual(hidden), **options
    )

  def _operands(self, x):
    q, k, v = (
        common.project(linear, x)
        for linear in (self.query, self.key, self.value)
    )
    return dict(
        q=q, k=k, v=v, log_decay=self._log_decay(x),
        scale=self.key_features**-0.5,
    )

  def _log_decay(self, x):
    """Maps `[..., D]` to `[..., H, K]`, in the dtype of states."""
    low = common.project(self.decay_in, x, base.state_dtype(x.dtype))
    logits = common.project(self.decay_out, low)
    logits = logits + self.decay_bias[...].astype(logits.dtype)
    return jax.nn.log_sigmoid(logits) / self.decay_temperature

  def _readout(self, o, x):
    y = jax.nn.silu(common.project(self.gate, x)) * self.norm(o)
    y = y.reshape(*x.shape[:-1], self.hidden_features)
    return common.project(self.output, y)
