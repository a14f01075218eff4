"""LRU (Orvieto et al., 2023), https://arxiv.org/abs/2303.06349."""

from typing import Any

from rnnzoo.models.config import ModelConfig


def _lra(
    features: int,
    state_features: int,
    dropout: float,
    r_min: float,
    r_max: float,
    *,
    options: dict[str, Any] | None = None,
    **fields: Any,
) -> ModelConfig:
  """A classifier of table 9 of the paper, for the long range arena."""
  layer_options = dict(
      state_features=state_features, r_min=r_min, r_max=r_max, **options or {}
  )
  return ModelConfig(
      layer='lru', num_layers=6, features=features,
      layer_options=layer_options, norm='batch', gate='glu', mlp='none',
      dropout=dropout, dropout_over_time=True,
  ).replace(**fields)


PRESETS = dict(
    lru_scifar=_lra(512, 384, 0.1, 0.9, 0.999, in_features=3, num_classes=10),
    lru_listops=_lra(128, 256, 0.0, 0.0, 0.99, num_classes=10),
    lru_text=_lra(256, 192, 0.1, 0.5, 0.9, num_classes=2),
    lru_retrieval=_lra(128, 256, 0.1, 0.5, 0.9, num_classes=2),
    lru_pathfinder=_lra(
        192, 256, 0.0, 0.9, 0.999, in_features=1, num_classes=2,
        bidirectional=True,
    ),
    lru_pathx=_lra(
        128, 256, 0.0, 0.999, 0.9999, in_features=1, num_classes=2,
        bidirectional=True, gate='half_glu',
        options=dict(max_phase=0.314159265),
    ),
)
