"""LFM2 (Liquid AI, 2025), with gated short convolutions and some attention.

The sizes are those of the released models, such as
https://huggingface.co/LiquidAI/LFM2-350M.
"""

from rnnzoo.models.config import ModelConfig


def _lfm2(features: int, mlp_features: int, num_heads: int) -> ModelConfig:
  """An LFM2 of 16 blocks, with attention in blocks 2, 5, 8, 10, 12 and 14."""
  first = 2 * 'short_conv,short_conv,attention,' + 'short_conv'
  return ModelConfig(
      layer=f'{first};short_conv,attention', num_layers=16,
      features=features, vocab_size=65_536, norm_epsilon=1e-5, mlp='swiglu',
      mlp_factor=mlp_features / features, use_bias=False, embed_std=0.02,
      tie_embeddings=True, scan_layers=True,
      layer_options=dict(attention=dict(
          num_heads=num_heads, num_kv_heads=8, window=4096, on_full='error',
          max_wavelength=1e6, normalize_qk=True, norm_epsilon=1e-5,
      )),
  )


PRESETS = dict(
    lfm2_350m=_lfm2(1024, 4608, 16),
    lfm2_700m=_lfm2(1536, 6912, 24),
    lfm2_1p2b=_lfm2(2048, 8192, 32),
)
