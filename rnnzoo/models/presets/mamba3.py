"""Mamba-3 (Lahoti et al., 2026), https://arxiv.org/abs/2603.15569.

The sizes are ours. The widths are those of Mamba-2, and the depth is such that
the number of parameters, with the vocabulary of Mamba-2, is that of the name.
"""

from typing import Any

from rnnzoo.models.config import ModelConfig


def _mamba3(num_layers: int, features: int, **options: Any) -> ModelConfig:
  """A language model whose blocks have no MLP, like that of Mamba-2."""
  return ModelConfig(
      layer='mamba3', num_layers=num_layers, features=features, mlp='none',
      norm_epsilon=1e-5, embed_std=0.02, tie_embeddings=True, scan_layers=True,
      layer_options=options,
  )


PRESETS = dict(
    mamba3_180m=_mamba3(37, 768),
    mamba3_440m=_mamba3(58, 1024),
    mamba3_1p5b=_mamba3(54, 2048),
    mamba3_mimo_1p5b=_mamba3(50, 2048, rank=4),
)
