"""DeltaNet (Yang et al., 2024), https://arxiv.org/abs/2406.06484."""

from typing import Any

from flax import nnx
import jax.numpy as jnp
from rnnzoo.layers import delta_memory

ACTIVATIONS = delta_memory.ACTIVATIONS
DeltaNetCarry = delta_memory.DeltaNetCarry


class DeltaNet(delta_memory.DeltaMemory):
  r"""Linear attention that corrects the value its state returns for a key.

  For each head, with :math:`*` a causal convolution with one filter of `C` taps
  a channel,

  .. math::
      q_t &= \mathrm{unit}(\phi(c_q * W_q x)_t), \quad
      k_t = \mathrm{unit}(\phi(c_k * W_k x)_t), \quad
      v_t = \mathrm{silu}(c_v * W_v x)_t \\
      \beta_t &= \sigma(W_\beta x_t) \\
      S_t &= S_{t-1} + k_t \beta_t (v_t - S_{t-1}^\top k_t)^\top \\
      y_t &= W_o \, \mathrm{norm}(S_t^\top q_t / \sqrt{K})

  where unit divides by the length of a vector, norm by the root of the mean
  square, and :math:`\phi` is the `activation`. The state is `H K V` numbers a
  sequence, and `(C - 1) H (2 K + V)` for the convolutions (32768 + 2304 if `D`
  is 256). A token costs `2 D H (K + V)` multiplications in maps, and for the
  state `3 H K V` in a step, or about `H (3 K V + 2 Q (K + V))` in parallel, in
  chunks of `Q` tokens (`ops.delta_rule`).

  Transitions have the eigenvalues 1 and `1 - beta`, in (0, 1).
  `allow_negative_eigenvalues` doubles `beta`. Then they are in (-1, 1), and a
  layer can count modulo 2 (https://arxiv.org/abs/2411.12537).

  Published models are reported to have heads of 128 features. Like the code of
  the authors, this layer adds 1e-6 to the squared length. Initial maps and
  filters are those of its modules (the PyTorch defaults); its training code
  draws them again (normal, with standard deviation 0.02).

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = DeltaNet(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, carry.S.shape, y.shape
    ((2, 3, 48), (2, 2, 8, 8), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int | None = None,
      key_features: int | None = None,
      value_features: int | None = None,
      conv_kernel: int = 4,
      activation: str = 'silu',
      allow_negative_eigenvalues: bool = False,
      norm_epsilon: float = 1e-5,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads; `D / K` if `None`.
      key_features: Features `K` of a key. If `None`, `D / H`; if `num_heads` is
        `None` too, the largest power of two up to 128 that divides `D`.
      value_features: Features `V` of a value; `K` if `None`.
      conv_kernel: Taps `C` of the convolutions.
      activation: The activation of queries and keys: `silu`, `relu`, `elu`
        (plus 1) or `identity`.
      allow_negative_eigenvalues: Whether `beta` is in (0, 2) instead of (0, 1).
      norm_epsilon: Added to the mean squares in the norm.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.delta_rule`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If sizes do not fit, or the activation is unknown.
    """
    num_heads, key_features = delta_memory.heads_of(
        in_features, 128, num_heads, key_features
    )
    if value_features is None:
      value_features = key_features
    self.activation = delta_memory.checked_activation(activation)
    self.allow_negative_eigenvalues = allow_negative_eigenvalues
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
    self._make_tokens(
        in_features, num_heads=num_heads, num_value_heads=None,
        key_features=key_features, value_features=value_features,
        conv_kernel=conv_kernel, chunk_size=chunk_size, dtype=dtype, **options,
    )
    self.beta = delta_memory.linear(
        in_features, num_heads, ('embed', 'heads'), **options
    )
    self._make_readout(norm_epsilon, **options)

  def _operands(self, q, k, v, x):
    q, k = delta_memory.unit(q), delta_memory.unit(k)
    return dict(q=q, k=k, v=v, beta=self._rates(self.beta, x))
