"""Nemotron-H (NVIDIA, 2025), https://arxiv.org/abs/2504.03624.

A block is Mamba-2, an MLP or attention, which has no positions.
"""

from rnnzoo.models.config import ModelConfig

_LAYERS = {'M': 'mamba2', '-': 'mlp', '*': 'attention'}


def _layer(first: str, repeated: str) -> str:
  """Returns the pattern of blocks that the released files give as letters."""
  return ';'.join(
      ','.join(_LAYERS[letter] for letter in part)
      for part in (first, repeated)
  )


PRESETS = dict(
    nemotron_h_8b=ModelConfig(
        layer=_layer('M-M-M-M*', 3 * '-M-M-M-M-M*' + '-M'), num_layers=52,
        features=4096, vocab_size=131_072, norm_epsilon=1e-5, mlp='relu2',
        mlp_layers='mlp', mlp_factor=5.25, use_bias=False, embed_std=0.02,
        scan_layers=True,
        layer_options=dict(
            mamba2=dict(
                state_features=128, head_features=64, num_groups=8,
                dt_low=0.001,
            ),
            attention=dict(
                num_heads=32, num_kv_heads=8, head_features=128, window=4096,
                on_full='error', rotary_fraction=0.0,
            ),
        ),
    ),
)
