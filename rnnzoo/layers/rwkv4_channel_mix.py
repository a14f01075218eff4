"""Channel mixing of RWKV-4 (Peng et al., 2023).

https://arxiv.org/abs/2305.13048
"""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import rwkv4


class RWKV4ChannelMix(base.RecurrentLayer):
  r"""The channel mixing of RWKV-4: an MLP of a token and the previous one.

  .. math::
      k_t &= \max(0, W_k (\mu_k x_t + (1 - \mu_k) x_{t-1}))^2 \\
      y_t &= \sigma(W_r (\mu_r x_t + (1 - \mu_r) x_{t-1})) \odot W_v k_t

  In a model it alternates with `RWKV4`. The state is the last token, `D`
  numbers a sequence. A token costs `2 D H + D^2` multiplications, `9 D^2` for
  the published `H = 4 D`. The channel mixing of RWKV-6 is the same with `H =
  3.5 D` and a `key_gain` of 1.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = RWKV4ChannelMix(16, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # [B, D], [B, T, D]
    >>> carry.shape, y.shape
    ((2, 16), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H`, `int(D * expansion_factor)`.
    out_features: `D`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      expansion_factor: float = 4.0,
      layer_index: int = 0,
      num_layers: int = 1,
      zero_init: bool = True,
      key_gain: float | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      expansion_factor: Hidden features per input feature.
      layer_index: Index of the layer among the channel mixings of the model.
      num_layers: Number of such layers in the model.
      zero_init: Whether the maps to values and receptances start at zero, as
        published, instead of orthogonal.
      key_gain: Gain of the orthogonal initial map to keys; if `None`, `sqrt(H /
        D)`, but at least 1.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If `layer_index` is out of range.
    """
    common.check_depth(layer_index, num_layers)
    self.in_features = self.out_features = d = in_features
    self.hidden_features = h = int(in_features * expansion_factor)
    self.dtype = dtype
    mu = (jnp.arange(d) / d) ** (1 - layer_index / num_layers)
    # Two arrays, because one buffer cannot be donated for two parameters.
    self.mu_k = nnx.Param(jnp.array(mu, param_dtype), axes=(None,))
    self.mu_r = nnx.Param(jnp.array(mu, param_dtype), axes=(None,))
    options = dict(param_dtype=param_dtype, rngs=rngs)
    self.key = rwkv4.linear(
        d, h, ('embed', 'mlp'), False, gain=key_gain, **options
    )
    self.value = rwkv4.linear(h, d, ('mlp', 'embed'), zero_init, **options)
    into = 'embed', 'hidden'
    self.receptance = rwkv4.linear(d, d, into, zero_init, **options)

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(D,)` of the last token, which is the state."""
    return (self.in_features,)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    return self._run(x, carry, reset, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask, step=True)
    return self._run(x, carry, reset, mask)

  def _run(self, x, carry, reset, mask):
    carry, shifted = common.token_shift(x, carry, reset=reset, mask=mask)
    k = common.project(self.key, rwkv4.mix(x, shifted, self.mu_k))
    r = common.project(self.receptance, rwkv4.mix(x, shifted, self.mu_r))
    k = jnp.square(jax.nn.relu(k))
    y = jax.nn.sigmoid(r) * common.project(self.value, k)
    return carry, base.masked(y, mask)
