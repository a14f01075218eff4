"""Qwen3-Next (2025), as Qwen3.5 with experts in all blocks.

https://huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct.
"""

from rnnzoo.models.config import ModelConfig

PRESETS = dict(
    qwen3_next_80b=ModelConfig(
        layer=','.join([*(3 * ['gated_delta_net']), 'gated_attention']),
        num_layers=48, features=2048, vocab_size=151_936, norm='rms1',
        norm_epsilon=1e-6, mlp='swiglu', mlp_factor=0.25, use_bias=False,
        embed_std=0.02, scan_layers=True,
        experts=dict(
            num_experts=512, experts_per_token=10, shared_features=512,
            weigh_shared=True,
        ),
        layer_options=dict(
            gated_delta_net=dict(
                num_heads=16, num_value_heads=32, key_features=128,
                value_features=128, norm_epsilon=1e-6,
            ),
            gated_attention=dict(
                num_heads=16, num_kv_heads=2, head_features=256, window=4096,
                on_full='error', max_wavelength=1e7, qk_norm='rms1',
            ),
        ),
    ),
)
