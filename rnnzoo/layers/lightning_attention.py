"""Lightning attention (MiniMax, 2025), https://arxiv.org/abs/2501.08313."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import linear_maps
from rnnzoo.layers import linear_memory


class LightningAttention(linear_memory.LinearMemory):
  r"""Linear attention with a decay rate for each head and depth: MiniMax-01.

  For head `h` of `H`, counted from 1, in block `l` of `L`, counted from 0,

  .. math::
      q_t &= \mathrm{SiLU}(W_q x_t), \quad k_t = \mathrm{SiLU}(W_k x_t), \quad
      v_t = \mathrm{SiLU}(W_v x_t) \\
      S_t &= e^{-r_h} S_{t-1} + k_t v_t^\top, \quad
      r_h = 2^{-8 h / H} \Bigl(1 - \frac{l}{L - 1 + 10^{-5}} + 10^{-5}\Bigr) \\
      y_t &= W_o (\sigma(W_g x_t) \odot \mathrm{norm}(S_t^\top q_t))

  with RMSNorm over all heads together. The rates are constants, the same for
  all tokens. They fall with depth, to almost 0 in the last block. Queries are
  not scaled: the norm cancels any factor, up to its epsilon.

  The state is `H K^2` numbers a sequence, `D^2 / H` by default. A token costs
  `5 D H K` multiplications in maps, and for the state `3 H K^2` in a step, or
  about `2 H Q K + 2 H K^2` in parallel, in chunks of `Q` tokens
  (`ops.linear_attention`).

  `l` and `L` count all blocks of a model, also those with other layers: in
  MiniMax-01 every eighth block has softmax attention. A model sets them. Maps
  start as in PyTorch; the published models draw them from N(0, 0.02^2).

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = LightningAttention(
    ...     16, num_heads=2, block_index=1, num_blocks=4, rngs=nnx.Rngs(0)
    ... )
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> S, y = layer(x)                               # y: [B, T, D]
    >>> S, y_next = layer.step(S, x[:, -1])           # [B, D]
    >>> S.shape, y.shape
    ((2, 2, 8, 8), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads.
    key_features: Features `K` of a query, a key and a value of a head.
    value_features: `K`.
    hidden_features: `H K`.
    rates: The decay rates `[H]`, constant.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int = 4,
      head_features: int | None = None,
      block_index: int = 0,
      num_blocks: int = 1,
      norm_epsilon: float = 1e-6,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads.
      head_features: Features `K` of a head; `D / H` if `None`.
      block_index: Index `l` of the block among all blocks of the model.
      num_blocks: Number `L` of blocks of the model.
      norm_epsilon: Added to the mean square in the norm.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.linear_attention`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide `D`, or a number is out of range.
    """
    self.in_features = self.out_features = d = in_features
    self.num_heads = num_heads
    self.key_features = self.value_features = k = linear_maps.head_size(
        'head_features', head_features, d, num_heads
    )
    self.hidden_features = hidden = num_heads * k
    self.chunk_size = chunk_size
    self.dtype = dtype
    # An array, not a number: the blocks of a stack differ in it.
    self.rates = decay_rates(num_heads, block_index, num_blocks)
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
    usual = initializers.uniform_fan_in
    into = lambda: linear_maps.into_heads(d, num_heads, k, usual(d), **options)
    self.query, self.key, self.value = into(), into(), into()
    self.gate = into()
    self.norm = common.RMSNorm(
        hidden, epsilon=norm_epsilon, param_dtype=param_dtype
    )
    self.output = linear_maps.out_of_heads(hidden, d, usual(hidden), **options)

  def _operands(self, x):
    q, k, v = (
        jax.nn.silu(common.project(linear, x))
        for linear in (self.query, self.key, self.value)
    )
    rates = jnp.asarray(self.rates, base.state_dtype(x.dtype))
    return dict(q=q, k=k, v=v, log_decay=-rates)

  def _readout(self, o, x):
    shape = (*x.shape[:-1], self.hidden_features)
    gate = jax.nn.sigmoid(common.project(self.gate, x).reshape(shape))
    return common.project(self.output, gate * self.norm(o.reshape(shape)))


def decay_rates(
    num_heads: int, block_index: int, num_blocks: int
) -> np.ndarray:
  """Returns the rates `r` of all heads in a block, float64.

  >>> decay_rates(2, 0, 1).round(4)
  array([0.0625, 0.0039])

  Args:
    num_heads: `H`.
    block_index: `l`, from 0.
    num_blocks: `L`.

  Returns:
    `[H]`, positive.

  Raises:
    ValueError: If `block_index` is not in `[0, num_blocks)`.
  """
  if not 0 <= block_index < num_blocks:
    raise ValueError(
        f'`block_index` must be in [0, {num_blocks}), got {block_index}.'
    )
  slopes = 2.0 ** (-8 * np.arange(1, num_heads + 1) / num_heads)
  return slopes * (1 - block_index / (num_blocks - 1 + 1e-5) + 1e-5)
