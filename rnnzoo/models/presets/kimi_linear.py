"""Kimi Linear (Kimi Team, 2025), https://arxiv.org/abs/2510.26692.

Kimi Delta Attention, with latent attention without positions in one of four
blocks, and experts in all blocks but the first.
"""

from rnnzoo.models.config import ModelConfig

# Blocks 1 to 23; the last three are like the first three of these.
_PATTERN = 2 * ['kda'] + ['latent_attention']
_PATTERN += 5 * (3 * ['kda'] + ['latent_attention'])

PRESETS = dict(
    kimi_linear_48b=ModelConfig(
        layer='kda_dense;' + ','.join(_PATTERN), num_layers=27, features=2304,
        vocab_size=163_840, norm_epsilon=1e-5, mlp='swiglu',
        mlp_factor=1024 / 2304, use_bias=False, embed_std=0.02,
        scan_layers=True,
        experts=dict(
            num_experts=256, experts_per_token=8, scores='sigmoid',
            scale=2.446, shared_features=1024,
        ),
        variants=dict(
            kda_dense=dict(layer='kda', mlp_factor=4.0, experts={}),
        ),
        layer_options=dict(
            kda=dict(num_heads=32, key_features=128),
            latent_attention=dict(
                num_heads=32, latent_features=512, key_features=128,
                shared_features=64, window=4096, on_full='error',
                rotation='none',
            ),
        ),
    ),
)
