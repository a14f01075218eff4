"""Jamba (Lieber et al., 2024), https://arxiv.org/abs/2403.19887.

Mamba, with attention in one of eight blocks and experts in every second one.
"""

from rnnzoo.models.config import ModelConfig

_DENSE = dict(mlp_factor=3.5, experts={})

PRESETS = dict(
    # Jamba-v0.1.
    jamba_52b=ModelConfig(
        layer='mamba_dense,mamba,mamba_dense,mamba,'
              'attention_dense,mamba,mamba_dense,mamba',
        num_layers=32, features=4096, vocab_size=65_536, norm_epsilon=1e-6,
        mlp='swiglu', mlp_factor=3.5, use_bias=False, embed_std=0.02,
        scan_layers=True,
        experts=dict(num_experts=16, experts_per_token=2, renormalize=False),
        variants=dict(
            mamba_dense=dict(layer='mamba', **_DENSE),
            attention_dense=dict(layer='attention', **_DENSE),
        ),
        layer_options=dict(
            mamba=dict(selection_norm='scaled'),
            attention=dict(
                num_heads=32, num_kv_heads=8, window=4096, on_full='error',
                rotary_fraction=0.0,
            ),
        ),
    ),
)
