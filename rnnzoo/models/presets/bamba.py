"""Bamba (2024), Mamba-2 with attention in three of 32 blocks.

https://huggingface.co/blog/bamba and
https://huggingface.co/ibm-ai-platform/Bamba-9B-v1.
"""

from rnnzoo.models.config import ModelConfig

PRESETS = dict(
    bamba_9b=ModelConfig(
        # With attention in blocks 9, 18 and 27.
        layer=f'mamba2;{8 * "mamba2,"}attention', num_layers=32,
        features=4096, vocab_size=128_256, norm_epsilon=1e-5, mlp='swiglu',
        mlp_factor=3.5, use_bias=False, embed_std=0.02, scan_layers=True,
        layer_options=dict(
            mamba2=dict(state_features=128, head_features=64),
            attention=dict(
                num_heads=32, num_kv_heads=8, window=4096, on_full='error',
                rotary_fraction=0.5,
            ),
        ),
    ),
)
