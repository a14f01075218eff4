"""RWKV-4 (Peng et al., 2023) and RWKV-7 (Peng et al., 2025).

https://arxiv.org/abs/2305.13048 and https://arxiv.org/abs/2503.14456. One of
their layers, time mix and channel mix, is two blocks here.
"""

from rnnzoo.models.config import ModelConfig


def _rwkv4(num_layers: int, features: int) -> ModelConfig:
  """A language model of RWKV-4 with `num_layers` layers of the paper."""
  return ModelConfig(
      layer='rwkv4,rwkv4_channel_mix', num_layers=2 * num_layers,
      features=features, norm='layer', norm_epsilon=1e-5, mlp='none',
      embed_norm=True, embed_std=1e-4, scan_layers=True,
  )


def _rwkv7(
    num_layers: int,
    features: int,
    decay_rank: int,
    value_rank: int,
    gate_rank: int,
) -> ModelConfig:
  """A language model of RWKV-7 with `num_layers` layers of the paper.

  Sizes and ranks were written down from memory. The first layer has parameters
  that it does not use (`v0`, `v1`, `v2`). Published weights leave them out.
  """
  return ModelConfig(
      layer='rwkv7,rwkv7_channel_mix', num_layers=2 * num_layers,
      features=features, norm='layer', norm_epsilon=1e-5, mlp='none',
      vocab_size=65_536, embed_norm=True, embed_std=1e-4, scan_layers=True,
      layer_options=dict(rwkv7=dict(
          decay_rank=decay_rank, rate_rank=decay_rank, value_rank=value_rank,
          gate_rank=gate_rank,
      )),
  )


PRESETS = dict(
    rwkv4_169m=_rwkv4(12, 768),
    rwkv4_430m=_rwkv4(24, 1024),
    rwkv4_1p5b=_rwkv4(24, 2048),
    rwkv4_3b=_rwkv4(32, 2560),
    rwkv4_7b=_rwkv4(32, 4096),
    rwkv4_14b=_rwkv4(40, 5120),
    rwkv7_0p19b=_rwkv7(12, 768, 64, 32, 128),
    rwkv7_0p4b=_rwkv7(24, 1024, 64, 32, 128),
    rwkv7_1p5b=_rwkv7(24, 2048, 96, 64, 256),
    rwkv7_2p9b=_rwkv7(32, 2560, 96, 64, 320),
)
