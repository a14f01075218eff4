"""The autoencoder: a sequence becomes one vector, and the vector a sequence."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.models import blocks
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig
from rnnzoo.models.sequence_model import SequenceModel


def positions(length: int, features: int) -> jax.Array:
  """Returns a vector of sines and cosines for each position, `[T, D]`.

  >>> positions(3, 8).shape
  (3, 8)
  """
  half = features // 2
  rates = 10_000.0 ** (-jnp.arange(half) / max(half - 1, 1))
  angles = jnp.arange(length)[:, None] * rates
  table = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return jnp.pad(table, ((0, 0), (0, features % 2)))


class SequenceAutoencoder(SequenceModel):
  """Compresses tokens into a vector and gives the tokens back from it.

  This is the model of the task "compression" of MAD (Poli et al. 2024,
  https://arxiv.org/abs/2403.17844). The code of a sequence is what the last
  block gives at the last step. The decoder adds a fixed vector to it for each
  position, and an MLP makes logits of each sum `x` by itself:

      x = gelu(W1 norm(x)),  x = gelu(W2 norm(x)),  logits = W3 norm(x)

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> model = SequenceAutoencoder(
  ...     ModelConfig.tiny().replace(vocab_size=7), rngs=nnx.Rngs(0)
  ... )
  >>> carry, code = model(jnp.ones((2, 5), jnp.int32))     # [B, D]
  >>> model.decode(code, 5).shape                          # [B, T, vocab_size]
  (2, 5, 7)

  Attributes:
    norms: The norms of the decoder.
    linears: `W1` and `W2`; `W3` is `head`.
  """

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: What to build. `vocab_size` must be set; `pooling` is `last`.
      layers: More layers by name, in addition to those of the zoo.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If no autoencoder can be built from the config.
    """
    if not config.vocab_size:
      raise errors.UserValueError('model.vocab_size must be set.')
    config = config.replace(pooling='last')
    super().__init__(config, config.vocab_size, layers, rngs)
    self.norm = None  # The decoder starts with a norm.
    self.norms = nnx.List([blocks.make_norm(config, rngs) for _ in range(3)])
    self.linears = nnx.List([
        blocks.make_linear(config, rngs) for _ in range(2)
    ])

  @property
  def causal(self) -> bool:
    """`False`: what is given back depends on the whole sequence."""
    return False

  def decode(
      self, code: jax.Array, length: int, *, train: bool = False
  ) -> jax.Array:
    """Returns the logits of the tokens of a sequence.

    Args:
      code: What calling the model returned, `[B, D]`.
      length: The number `T` of tokens.
      train: Whether batch norms use and update the statistics of the batch.

    Returns:
      Logits `[B, T, vocab_size]`, float32 or wider.
    """
    dtype = jnp.dtype(self.config.dtype)
    x = code[:, None] + positions(length, self.config.features)
    x = x.astype(dtype)
    for norm, linear in zip(self.norms, self.linears):
      y = common.project(linear, norm(x, train=train))
      x = jax.nn.gelu(y, approximate=False)
    x = self.norms[-1](x, train=train)
    return common.project(self.head, x, base.state_dtype(dtype))

  def _finish(self, x, carry, reset, mask):
    """Returns the code of the steps since the last reset, `[B, D]`."""
    return self._pool(x, carry, reset, mask)
