"""Channel mixing of RWKV-7 (Peng et al., 2025).

https://arxiv.org/abs/2503.14456
"""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import rwkv7


class RWKV7ChannelMix(base.RecurrentLayer):
  r"""The channel mixing of RWKV-7: an MLP of a token and the previous one.

  .. math::
      y_t = W_v \max(0, W_k (x_t + \mu_k (x_{t-1} - x_t)))^2

  In a model it alternates with `RWKV7`. Unlike that of RWKV-4 it has no
  receptance, and its :math:`\mu` is the weight of the previous token. The state
  is the last token, `D` numbers a sequence. A token costs `2 D H`
  multiplications, `8 D^2` for the published `H = 4 D`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = RWKV7ChannelMix(16, rngs=nnx.Rngs(0))
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
      zero_init: Whether the output map starts at zero, as published, instead of
        uniform.
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
    power = (1 - layer_index / num_layers) ** 4
    mu = 1 - (jnp.arange(d) / d) ** power
    self.mu_k = nnx.Param(mu.astype(param_dtype), axes=(None,))
    options = dict(param_dtype=param_dtype, rngs=rngs)
    self.key = rwkv7.linear(d, h, ('embed', 'mlp'), 0.5, **options)
    self.value = rwkv7.linear(
        h, d, ('mlp', 'embed'), 0 if zero_init else 0.5, **options
    )

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
    k = common.project(self.key, rwkv7.mix(x, shifted, self.mu_k))
    y = common.project(self.value, jnp.square(jax.nn.relu(k)))
    return carry, base.masked(y, mask)
