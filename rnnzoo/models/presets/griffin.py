"""Hawk, Griffin (De et al., 2024) and RecurrentGemma.

https://arxiv.org/abs/2402.19427. Hawk has recurrent blocks only. In Griffin,
every third block is local attention.
"""

from rnnzoo.models.config import ModelConfig


def _hawk(features: int, hidden_features: int, num_layers: int) -> ModelConfig:
  """A Hawk with the sizes of table 2 of the paper.

  The table does not count the embedding. It gives the same sizes for Hawk and
  for Griffin, although Hawk has slightly more parameters.
  """
  return ModelConfig(
      layer='griffin', num_layers=num_layers, features=features, mlp_factor=3,
      tie_embeddings=True, scan_layers=True,
      layer_options=dict(
          hidden_features=hidden_features, output_scale=2 / num_layers
      ),
  )


def _griffin(
    features: int, hidden_features: int, num_layers: int, num_heads: int
) -> ModelConfig:
  """A Griffin with the sizes of table 2; all heads share keys and values."""
  hawk = _hawk(features, hidden_features, num_layers)
  return hawk.replace(
      layer='griffin,griffin,attention',
      layer_options=dict(
          griffin=hawk.layer_options,
          attention=dict(
              num_heads=num_heads, head_features=128, num_kv_heads=1,
              window=1024, rotary_fraction=0.5, use_output_bias=True,
              output_scale=2 / num_layers,
          ),
      ),
  )


def _recurrentgemma(
    features: int, num_layers: int, num_heads: int, embed_scale: float
) -> ModelConfig:
  """A RecurrentGemma as released: a Griffin with other heads.

  Args:
    features: The number of features.
    num_layers: The number of blocks.
    num_heads: The number of heads of attention and of the gates.
    embed_scale: The square root of `features`, rounded to bfloat16.
  """
  output_scale = 2 / num_layers
  return ModelConfig(
      layer='griffin,griffin,attention', num_layers=num_layers,
      features=features, mlp_factor=3, vocab_size=256_000, tie_embeddings=True,
      norm='rms1', embed_scale=embed_scale, soft_cap=30.0, scan_layers=True,
      layer_options=dict(
          griffin=dict(
              hidden_features=features, num_heads=num_heads,
              initialization='recurrentgemma', output_scale=output_scale,
          ),
          attention=dict(
              num_heads=num_heads, num_kv_heads=1, window=2049,
              rotary_fraction=0.5, use_output_bias=True,
              output_scale=output_scale,
          ),
      ),
  )


PRESETS = dict(
    griffin_100m=_griffin(768, 1024, 12, 6),
    griffin_200m=_griffin(1024, 1536, 12, 8),
    griffin_400m=_griffin(1536, 2048, 12, 12),
    griffin_1p3b=_griffin(2048, 2560, 24, 16),
    griffin_3b=_griffin(3072, 4096, 24, 24),
    griffin_7b=_griffin(4096, 5632, 32, 32),
    griffin_14b=_griffin(5120, 8192, 40, 40),
    hawk_100m=_hawk(768, 1024, 12),
    hawk_200m=_hawk(1024, 1536, 12),
    hawk_400m=_hawk(1536, 2048, 12),
    hawk_1p3b=_hawk(2048, 2560, 24),
    hawk_3b=_hawk(3072, 4096, 24),
    hawk_7b=_hawk(4096, 5632, 32),
    recurrentgemma_2b=_recurrentgemma(2560, 26, 10, 50.5),
    recurrentgemma_9b=_recurrentgemma(4096, 38, 16, 64.0),
)
