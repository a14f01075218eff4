"""Qwen3.5 (2026), dense: three blocks of Gated DeltaNet to one of attention.

The sizes are those of the part of released models that reads text, such as
https://huggingface.co/Qwen/Qwen3.5-9B.
"""

from typing import Any

from rnnzoo.models.config import ModelConfig


def _qwen3_5(
    num_layers: int, features: int, mlp_features: int, num_heads: int,
    num_kv_heads: int, num_value_heads: int, **fields: Any,
) -> ModelConfig:
  """A Qwen3.5; the heads of both layers differ in number and size."""
  layer = ','.join([*(3 * ['gated_delta_net']), 'gated_attention'])
  return ModelConfig(
      layer=layer, num_layers=num_layers, features=features,
      vocab_size=248_320, norm='rms1', norm_epsilon=1e-6, mlp='swiglu',
      mlp_factor=mlp_features / features, use_bias=False, embed_std=0.02,
      scan_layers=True,
      layer_options=dict(
          gated_delta_net=dict(
              num_heads=16, num_value_heads=num_value_heads, key_features=128,
              value_features=128, norm_epsilon=1e-6,
          ),
          gated_attention=dict(
              num_heads=num_heads, num_kv_heads=num_kv_heads,
              head_features=256, window=4096, on_full='error',
              max_wavelength=1e7, qk_norm='rms1',
          ),
      ),
      **fields,
  )


PRESETS = dict(
    qwen3_5_0p8b=_qwen3_5(24, 1024, 3584, 8, 2, 16, tie_embeddings=True),
    qwen3_5_2b=_qwen3_5(24, 2048, 6144, 8, 2, 16, tie_embeddings=True),
    qwen3_5_4b=_qwen3_5(32, 2560, 9216, 16, 4, 32, tie_embeddings=True),
    qwen3_5_9b=_qwen3_5(32, 4096, 12_288, 16, 4, 32),
    qwen3_5_27b=_qwen3_5(64, 5120, 17_408, 24, 4, 48),
)
