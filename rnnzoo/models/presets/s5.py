"""S5 (Smith et al., 2022), https://arxiv.org/abs/2208.04933."""

from typing import Any

from rnnzoo.models.config import ModelConfig


def _s5(
    features: int,
    state_features: int,
    blocks: int,
    c_init: str,
    dropout: float,
    *,
    options: dict[str, Any] | None = None,
    **fields: Any,
) -> ModelConfig:
  """A classifier of the official scripts."""
  layer_options = dict(
      state_features=state_features, blocks=blocks, c_init=c_init,
      bidirectional=True, **options or {},
  )
  return ModelConfig(
      layer='s5', num_layers=6, features=features, layer_options=layer_options,
      norm='batch', gate='half_glu', mlp='none', dropout=dropout,
      dropout_over_time=True,
  ).replace(**fields)


PRESETS = dict(
    s5_listops=_s5(
        128, 16, 8, 'lecun_normal', 0.0, num_layers=8, gate='half_glu2',
        num_classes=10,
    ),
    s5_text=_s5(
        256, 192, 12, 'lecun_normal', 0.1, gate='half_glu2', num_classes=2
    ),
    s5_retrieval=_s5(
        128, 256, 16, 'trunc_standard_normal', 0.0, num_classes=2
    ),
    s5_image=_s5(
        512, 384, 3, 'lecun_normal', 0.1, in_features=1, num_classes=10,
        options=dict(clip_eigs=True),
    ),
    s5_pathfinder=_s5(
        192, 256, 8, 'trunc_standard_normal', 0.05, in_features=1,
        num_classes=2,
    ),
    s5_pathx=_s5(
        128, 256, 16, 'complex_normal', 0.0, in_features=1, num_classes=2,
        options=dict(dt_min=1e-4),
    ),
    s5_speech=_s5(
        96, 128, 16, 'lecun_normal', 0.1, in_features=1, num_classes=35
    ),
)
