"""OLMo Hybrid (Ai2, 2026): three blocks of Gated DeltaNet to one of attention.

https://huggingface.co/allenai/Olmo-Hybrid-7B. Its attention has no positions,
and in blocks with attention norms follow the branches.
"""

from rnnzoo.models.config import ModelConfig

PRESETS = dict(
    olmo_hybrid_7b=ModelConfig(
        layer=','.join([*(3 * ['gated_delta_net']), 'attention']),
        num_layers=32, features=3840, vocab_size=100_352, norm_epsilon=1e-6,
        out_norm_layers='attention', mlp='swiglu', mlp_factor=11_008 / 3840,
        use_bias=False, embed_std=0.02, scan_layers=True,
        layer_options=dict(
            gated_delta_net=dict(
                num_heads=30, num_value_heads=30, key_features=96,
                value_features=192, allow_negative_eigenvalues=True,
                norm_epsilon=1e-5,
            ),
            attention=dict(
                num_heads=30, window=4096, on_full='error',
                rotary_fraction=0.0, normalize_qk=True, qk_norm='rms_all',
            ),
        ),
    ),
)
