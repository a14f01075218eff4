"""HGRN2 (Qin et al., 2024), https://arxiv.org/abs/2404.07904."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import linear_maps
from rnnzoo.layers import linear_memory


class HGRN2(linear_memory.LinearMemory):
  r"""HGRN with a matrix as state: what the gate forgets is the key.

  For each of `H` heads,

  .. math::
      f_t &= \gamma + (1 - \gamma) \odot \sigma(W_f x_t) \\
      q_t &= \mathrm{SiLU}(W_q x_t), \quad v_t = W_i x_t \\
      S_t &= \mathrm{diag}(f_t) S_{t-1} + (1 - f_t) v_t^\top, \quad
      o_t = S_t^\top q_t / \sqrt{K} \\
      y_t &= W_o \, \mathrm{norm}(o_t)

  with RMSNorm over all heads together. This is linear attention with the decay
  of `GLA`, whose keys are not free but `1 - f`. A larger bound :math:`\gamma`
  means a longer memory. As in `HGRN`, it is a parameter of the layer, which
  starts at `lower_bound`, or absent, and then it is 0. The published models
  have absent bounds in the first layer and start from `l / L` in layer `l` of
  `L`.

  The state is `H K V` numbers a sequence, `D^2 / H` by default, where `K` and
  `V` are `D / H` (published: 128). A token costs `2 D H (K + V)`
  multiplications in maps, and for the state `3 H K V` in a step, or about `H (Q
  + 2 K) V + H Q K` in parallel, in chunks of `Q` tokens
  (`ops.linear_attention`).

  The source is the layer of flash-linear-attention. Its norm has an epsilon of
  1e-5, whatever its option says. Maps start as in PyTorch, as there (its
  language model draws them from N(0, 0.02^2)).

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = HGRN2(16, num_heads=2, lower_bound=0.5, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> S, y = layer(x)                               # y: [B, T, D]
    >>> S, y_next = layer.step(S, x[:, -1])           # [B, D]
    >>> S.shape, y.shape
    ((2, 2, 8, 8), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads.
    key_features: Features `K` of a query and of a gate of a head.
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
      lower_bound: float = 0.0,
      norm_epsilon: float = 1e-5,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads.
      key_features: Features `K` of a query and of a gate; `D / H` if `None`.
      value_features: Features `V` of a value; `D / H` if `None`.
      lower_bound: Initial value of `gamma`, in [0, 1); 0 means no `gamma`.
      norm_epsilon: Added to the mean square in the norm.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.linear_attention`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for `gamma`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide the features, or a number is out of
        range.
    """
    if not 0 <= lower_bound < 1:
      raise ValueError(f'`lower_bound` must be in [0, 1), got {lower_bound}.')
    self.in_features = self.out_features = d = in_features
    self.num_heads = num_heads
    size = linear_maps.head_size
    self.key_features = size('key_features', key_features, d, num_heads)
    self.value_features = size('value_features', value_features, d, num_heads)
    self.hidden_features = hidden = num_heads * self.value_features
    self.chunk_size = chunk_size
    self.dtype = dtype
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
    usual = initializers.uniform_fan_in
    into = lambda features: linear_maps.into_heads(
        d, num_heads, features, usual(d), **options
    )
    self.query = into(self.key_features)
    self.forget = into(self.key_features)
    self.value = into(self.value_features)
    if lower_bound > 0:
      bound = jnp.full(
          (num_heads, self.key_features), lower_bound,
          base.state_dtype(param_dtype),
      )
      self.bound_logit = nnx.Param(
          jax.scipy.special.logit(bound), axes=('heads', None), recurrent=True
      )
    else:
      self.bound_logit = None
    self.norm = common.RMSNorm(
        hidden, epsilon=norm_epsilon, param_dtype=param_dtype
    )
    self.output = linear_maps.out_of_heads(hidden, d, usual(hidden), **options)

  def _operands(self, x):
    # In the dtype of states: log f, and 1 - f without a difference.
    gate = common.project(self.forget, x, base.state_dtype(x.dtype))
    log_forget, key = jax.nn.log_sigmoid(gate), jax.nn.sigmoid(-gate)
    if self.bound_logit is not None:
      bound = self.bound_logit[...].astype(gate.dtype)
      key = jax.nn.sigmoid(-bound) * key
      log_forget = jnp.logaddexp(
          jax.nn.log_sigmoid(bound), jax.nn.log_sigmoid(-bound) + log_forget
      )
    return dict(
        q=jax.nn.silu(common.project(self.query, x)),
        k=key.astype(x.dtype),
        v=common.project(self.value, x),
        log_decay=log_forget,
        scale=self.key_features**-0.5,
    )

  def _readout(self, o, x):
    y = self.norm(o.reshape(*x.shape[:-1], self.hidden_features))
    return common.project(self.output, y)
