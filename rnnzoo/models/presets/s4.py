"""S4 (Gu et al., 2021) and S4D (Gu et al., 2022).

https://arxiv.org/abs/2111.00396 and https://arxiv.org/abs/2206.11893.
"""

from typing import Any, Literal

from rnnzoo.models.config import ModelConfig


def _s4(
    features: int,
    state_features: int,
    norm_position: Literal['pre', 'post'],
    layer: str = 's4',
    *,
    options: dict[str, Any] | None = None,
    **fields: Any,
) -> ModelConfig:
  """A classifier of the official configs for the long range arena.

  The official code adds the two directions. Here a linear map combines them.
  """
  layer_options = dict(
      state_features=state_features, output_map='none', **options or {}
  )
  if layer == 's4d':
    layer_options['init'] = 'legs'
  return ModelConfig(
      layer=layer, num_layers=6, features=features,
      layer_options=layer_options, bidirectional=True, norm='batch',
      norm_position=norm_position, gate='glu', mlp='none', **fields,
  )


PRESETS = dict(
    s4_listops=_s4(256, 4, 'post', num_classes=10),
    s4_text=_s4(256, 4, 'pre', num_classes=2),
    s4_retrieval=_s4(256, 4, 'pre', num_classes=2),
    s4_image=_s4(
        512, 64, 'post', dropout=0.1, dropout_over_time=True, in_features=1,
        num_classes=10,
    ),
    s4_pathfinder=_s4(256, 64, 'pre', in_features=1, num_classes=2),
    s4_pathx=_s4(
        256, 64, 'pre', in_features=1, num_classes=2,
        options=dict(dt_min=1e-4),
    ),
    s4d_listops=_s4(256, 4, 'post', 's4d', num_classes=10),
    s4d_text=_s4(256, 4, 'pre', 's4d', num_classes=2),
    s4d_retrieval=_s4(256, 4, 'pre', 's4d', num_classes=2),
    s4d_image=_s4(
        512, 64, 'post', 's4d', dropout=0.1, dropout_over_time=True,
        in_features=1, num_classes=10,
    ),
    s4d_pathfinder=_s4(256, 64, 'pre', 's4d', in_features=1, num_classes=2),
    s4d_pathx=_s4(
        256, 64, 'pre', 's4d', in_features=1, num_classes=2,
        options=dict(dt_min=1e-4),
    ),
)
