"""Zamba2 (Glorioso et al., 2024), https://arxiv.org/abs/2411.15242.

Mamba-2. Before every sixth block stands attention with an MLP, whose parameters
all places share, or take turns to share; each place adds matrices of low rank.
"""

from collections.abc import Sequence

from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig


def _zamba2(
    features: int, num_layers: int, places: Sequence[int], num_shared: int, *,
    state_features: int, attention_adapters: bool, rotary_fraction: float,
    num_groups: int = 1,
) -> ModelConfig:
  """A Zamba2.

  Args:
    features: The number of features of the model.
    num_layers: The number of blocks.
    places: The blocks before which a shared block stands.
    num_shared: The number of shared blocks.
    state_features: The size of a state of Mamba-2.
    attention_adapters: Whether queries, keys and values have adapters, too.
    rotary_fraction: The fraction of a head that is rotated.
    num_groups: The number of groups of heads of Mamba-2.
  """
  names = num_layers * ['mamba2']
  for n, i in enumerate(places):
    names[i] = f'hybrid{n % num_shared + 1}'
  return ModelConfig(
      layer=patterns.pattern(names), num_layers=num_layers,
      features=features, vocab_size=32_000, norm_epsilon=1e-5, mlp='none',
      use_bias=False, embed_std=0.02, tie_embeddings=True, scan_layers=True,
      variants={
          f'hybrid{i}': dict(layer='mamba2', shared_block=i)
          for i in range(1, num_shared + 1)
      },
      shared_options=dict(
          num_heads=32, window=4096, on_full='error',
          rotary_fraction=rotary_fraction, mlp_features=4 * features,
          adapter_rank=128, attention_adapters=attention_adapters,
      ),
      layer_options=dict(mamba2=dict(
          state_features=state_features, head_features=64, dt_low=0.001,
          num_groups=num_groups,
      )),
  )


PRESETS = dict(
    zamba2_1p2b=_zamba2(
        2048, 38, range(5, 36, 6), 1, state_features=128,
        attention_adapters=True, rotary_fraction=1.0,
    ),
    zamba2_2p7b=_zamba2(
        2560, 54, (6, 12, 18, 24, 30, 36, 42, 47, 51), 2, state_features=64,
        attention_adapters=False, rotary_fraction=0.0,
    ),
    zamba2_7b=_zamba2(
        3584, 81, (6, *range(11, 78, 6)), 2, state_features=64,
        attention_adapters=False, rotary_fraction=1.0, num_groups=2,
    ),
)
