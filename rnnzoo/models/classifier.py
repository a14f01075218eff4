"""The classifier: a sequence in, logits of its class or of every step out."""

from flax import nnx
from rnnzoo import errors
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig
from rnnzoo.models.sequence_model import SequenceModel


class SequenceClassifier(SequenceModel):
  """Gives logits of classes, for a sequence of tokens, vectors or images.

  The logits are `[B, num_classes]`, those of the whole sequence:

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig.tiny().replace(num_classes=3)
  >>> model = SequenceClassifier(config, rngs=nnx.Rngs(0))
  >>> tokens = jnp.ones((2, 5), jnp.int32)                 # [B, T]
  >>> carry, logits = model(tokens)                        # [B, num_classes]
  >>> logits.shape
  (2, 3)

  With `pooling='none'` they are `[B, T, num_classes]`, those of every step, as
  for labels of words or of frames:

  >>> tagger = SequenceClassifier(
  ...     config.replace(pooling='none'), rngs=nnx.Rngs(0)
  ... )
  >>> carry, logits = tagger(tokens)
  >>> logits.shape
  (2, 5, 3)
  >>> carry, logits = tagger.step(carry, tokens[:, 0])     # [B, num_classes]

  With `bidirectional=True` the label of a step may depend on later steps. Such
  a model has no `step`.
  """

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: What to build. `num_classes` must be set, and one of
        `vocab_size`, `in_features` and `image_shape`.
      layers: More layers by name, in addition to those of the zoo.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If no classifier can be built from the config.
    """
    if not config.num_classes:
      raise errors.UserValueError('model.num_classes must be set.')
    super().__init__(config, config.num_classes, layers, rngs)
