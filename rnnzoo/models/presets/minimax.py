"""MiniMax-01 (2025), https://arxiv.org/abs/2501.08313.

Lightning attention, with softmax attention in one of eight blocks, and experts
in all blocks. A sum starts from the normalised features, times a factor. Half
of a head is rotated, as the released file says; `transformers` 5.23.0 rotates
whole heads.
"""

from rnnzoo.models.config import ModelConfig

_SCALES = 3.5565588200778455, 1.0

PRESETS = dict(
    minimax_text_01_456b=ModelConfig(
        layer=','.join([*(7 * ['lightning_attention']), 'attention']),
        num_layers=80, features=6144, vocab_size=200_064, norm_epsilon=1e-5,
        norm_position='both', layer_scales=_SCALES, mlp_scales=_SCALES,
        mlp='swiglu', mlp_factor=1.5, use_bias=False, embed_std=0.02,
        scan_layers=True,
        experts=dict(num_experts=32, experts_per_token=2),
        layer_options=dict(
            lightning_attention=dict(num_heads=64, head_features=128),
            attention=dict(
                num_heads=64, num_kv_heads=8, head_features=128, window=4096,
                on_full='error', rotary_fraction=0.5, max_wavelength=1e7,
            ),
        ),
    ),
)
