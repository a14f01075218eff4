"""Hybrids of the delta rule and attention, three blocks of one to one.

The sizes are ours, and named after the number of parameters with an embedding
of 50,288 tokens. The pattern is that of two large published models: Kimi Linear
(https://arxiv.org/abs/2510.26692), whose attention has no positions, and
Qwen3-Next, whose attention rotates a quarter of the features. Unlike there,
attention is neither latent nor gated, its window is finite, and the MLPs have
no experts.
"""

from typing import Any

from rnnzoo.models.config import ModelConfig


def _hybrid(
    layer: str, num_layers: int, features: int, **attention: Any
) -> ModelConfig:
  """A language model with heads of 128 features, four to one of keys."""
  heads = features // 128
  return ModelConfig(
      layer=','.join([*(3 * [layer]), 'attention']), num_layers=num_layers,
      features=features, mlp='swiglu', mlp_factor=8 / 3, mlp_multiple=256,
      use_bias=False, embed_std=0.02, tie_embeddings=True, scan_layers=True,
      layer_options=dict(attention=dict(
          num_heads=heads, num_kv_heads=heads // 4, window=4096,
          output_scale=2 / num_layers, **attention,
      )),
  )


def _kda(num_layers: int, features: int) -> ModelConfig:
  """Kimi Delta Attention; order is known from the recurrent blocks alone."""
  return _hybrid('kda', num_layers, features, rotary_fraction=0.0)


def _gated_delta_net(num_layers: int, features: int) -> ModelConfig:
  """Gated DeltaNet; queries and keys of the attention are normalised."""
  return _hybrid(
      'gated_delta_net', num_layers, features, rotary_fraction=0.25,
      normalize_qk=True,
  )


PRESETS = dict(
    kda_hybrid_360m=_kda(24, 1024),
    kda_hybrid_1p3b=_kda(24, 2048),
    gated_delta_net_hybrid_390m=_gated_delta_net(24, 1024),
    gated_delta_net_hybrid_1p5b=_gated_delta_net(24, 2048),
)
