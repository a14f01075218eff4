"""Falcon-H1 (TII, 2025), https://arxiv.org/abs/2507.22448.

Mamba-2 and attention read the same features in every block, and their outputs
are added. Constant factors take the place of scaled initial values.
"""

from rnnzoo.models.config import ModelConfig

PRESETS = dict(
    falcon_h1_0p5b=ModelConfig(
        layer='mamba2+attention', num_layers=36, features=1024,
        vocab_size=32_784, norm_epsilon=1e-5, mlp='swiglu', mlp_factor=2.0,
        use_bias=False, embed_std=0.02, scan_layers=True,
        embed_scale=32**0.5, logit_scale=0.0390625,
        mlp_gate_scale=0.8838834764831844, mlp_scales=(1.0, 0.5859375),
        layer_options={
            'mamba2': dict(
                state_features=128, expansion_factor=1.5, head_features=64,
                output_norm='none',
                projection_scales=(8**-0.5, 0.25, 8**-0.5, 0.5, 8**-0.5),
            ),
            'attention': dict(
                num_heads=8, num_kv_heads=2, head_features=64, window=4096,
                on_full='error', max_wavelength=1e11,
                score_scale=0.390625 / 8,  # Keys have a factor.
            ),
            'mamba2+attention': dict(
                input_scales=(1.25, 1.0), output_scales=(18**-0.5, 0.9375)
            ),
        },
    ),
)
