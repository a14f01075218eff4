"""The layer `none`, which remembers nothing: for comparison."""

from flax import nnx
from rnnzoo.layers import base


class Memoryless(base.RecurrentLayer):
  """Passes each token on, so that a block is its MLP.

  >>> import jax.numpy as jnp
  >>> layer = Memoryless(8, rngs=nnx.Rngs(0))
  >>> carry, y = layer(jnp.ones((2, 5, 8)))
  >>> carry, y.shape
  ((), (2, 5, 8))
  """

  def __init__(
      self, in_features: int, *, dtype=None, param_dtype=None, rngs: nnx.Rngs
  ):
    """Creates the layer, which has no parameters.

    Args:
      in_features: The number of features of a token.
      dtype: The compute dtype, or `None` for that of the input.
      param_dtype: Not used.
      rngs: Not used.
    """
    del param_dtype, rngs
    self.in_features = self.out_features = in_features
    self.dtype = dtype

  def initialize_carry(self, batch_size, dtype=None):
    return ()

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, _ = base.prepare(self, x, carry, reset, mask)
    return carry, x

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, _, _ = base.prepare(self, x, carry, reset, mask, step=True)
    return carry, x
