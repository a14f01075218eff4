"""Mamba (Gu and Dao, 2023) and Mamba-2 (Dao and Gu, 2024).

https://arxiv.org/abs/2312.00752 and https://arxiv.org/abs/2405.21060. Falcon
Mamba (2024), https://arxiv.org/abs/2410.05355, and Codestral Mamba are larger
models of the same blocks.
"""

from typing import Any

from rnnzoo.models.config import ModelConfig


def _mamba(
    num_layers: int, features: int, layer: str = 'mamba', **fields: Any
) -> ModelConfig:
  """A language model of either paper: its blocks have no MLP."""
  return ModelConfig(
      layer=layer, num_layers=num_layers, features=features, mlp='none',
      norm_epsilon=1e-5, embed_std=0.02, tie_embeddings=True, scan_layers=True,
  ).replace(**fields)


PRESETS = dict(
    mamba_130m=_mamba(24, 768),
    mamba_370m=_mamba(48, 1024),
    mamba_790m=_mamba(48, 1536),
    mamba_1p4b=_mamba(48, 2048),
    mamba_2p8b=_mamba(64, 2560),
    mamba2_130m=_mamba(24, 768, 'mamba2'),
    mamba2_370m=_mamba(48, 1024, 'mamba2'),
    mamba2_780m=_mamba(48, 1536, 'mamba2'),
    mamba2_1p3b=_mamba(48, 2048, 'mamba2'),
    mamba2_2p7b=_mamba(64, 2560, 'mamba2'),
    falcon_mamba_7b=_mamba(
        64, 4096, vocab_size=65_024, tie_embeddings=False,
        layer_options=dict(selection_norm='plain'),
    ),
    mamba2_codestral_7b=_mamba(
        64, 4096, 'mamba2', vocab_size=32_768, tie_embeddings=False,
        layer_options=dict(num_groups=8),
    ),
    mamba_selective_copying=_mamba(
        2, 64, vocab_size=16, tie_embeddings=False, scan_layers=False
    ),
)
