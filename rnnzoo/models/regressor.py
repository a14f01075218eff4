"""The regressor: a sequence in, numbers for it or for every step out."""

from flax import nnx
from rnnzoo import errors
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig
from rnnzoo.models.sequence_model import SequenceModel


class SequenceRegressor(SequenceModel):
  """Predicts numbers, for a sequence of tokens, vectors or images.

  The predictions are `[B, out_features]`, those of the whole sequence:

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig.tiny().replace(
  ...     vocab_size=0, in_features=4, out_features=2
  ... )
  >>> model = SequenceRegressor(config, rngs=nnx.Rngs(0))
  >>> x = jnp.ones((3, 5, 4))                         # [B, T, in_features]
  >>> carry, y = model(x)                             # [B, out_features]
  >>> y.shape, y.dtype
  ((3, 2), dtype('float32'))

  With `pooling='none'` they are `[B, T, out_features]`, those of every step, as
  for forecasts of the next step:

  >>> forecaster = SequenceRegressor(
  ...     config.replace(pooling='none'), rngs=nnx.Rngs(0)
  ... )
  >>> carry, y = forecaster(x)
  >>> y.shape
  (3, 5, 2)
  >>> carry, y = forecaster.step(carry, x[:, 0])      # [B, out_features]

  With `bidirectional=True` the output of a step may depend on later steps,
  which is wrong for forecasts: `model.causal` is `False` then. Such a model has
  no `step`.
  """

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: What to build. `out_features` must be set, and one of
        `vocab_size`, `in_features` and `image_shape`.
      layers: More layers by name, in addition to those of the zoo.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If no regressor can be built from the config.
    """
    if not config.out_features:
      raise errors.UserValueError('model.out_features must be set.')
    super().__init__(config, config.out_features, layers, rngs)
