"""LMU (Voelker et al., 2019) and parallel LMU (Chilkuri, Eliasmith, 2021).

LMU: NeurIPS 32. Parallel LMU: https://arxiv.org/abs/2102.11417.
"""

from rnnzoo.models.config import ModelConfig


def _psmnist(layer: str, features: int, order: int) -> ModelConfig:
  """A classifier of permuted images, which it reads pixel by pixel.

  Like every model here, it has an encoder, a norm and a residual connection.
  The published models have none of the three.
  """
  return ModelConfig(
      layer=layer, num_layers=1, features=features, mlp='none',
      layer_options=dict(order=order, theta=784.0), in_features=1,
      num_classes=10, pooling='last',
  )


PRESETS = dict(
    lmu_psmnist=_psmnist('lmu', 212, 256),
    parallel_lmu_psmnist=_psmnist('parallel_lmu', 346, 468),
)
