"""Granite 4.0 H (IBM, 2025): Mamba-2, with attention in one of ten blocks.

https://www.ibm.com/new/announcements/ibm-granite-4-0-tiny-preview-sneak-peek
and https://huggingface.co/ibm-granite/granite-4.0-h-tiny.

The larger two, of 7 and 32 billion parameters, have experts in all blocks.
Attention has no positions. The sizes are those of the released files. So are
the factors of the 350M; of the others, we had no whole file to compare with.
"""

from typing import Any

from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

_PATTERN = ','.join([*(5 * ['mamba2']), 'attention', *(4 * ['mamba2'])])


def _granite(
    features: int, mlp_features: int, num_heads: int, num_kv_heads: int,
    logit_divisor: float, *, residual: float = 0.22, head_features: int = 64,
    **changes: Any,
) -> ModelConfig:
  """A Granite 4.0 H.

  Args:
    features: The number of features of the model.
    mlp_features: That of an MLP, or of one expert.
    num_heads: The number of heads of attention.
    num_kv_heads: That of keys and values.
    logit_divisor: What logits are divided by.
    residual: What a layer and an MLP are multiplied by.
    head_features: The number of features of a head of Mamba-2.
    **changes: Other fields.
  """
  defaults: dict[str, Any] = dict(layer=_PATTERN, num_layers=40)
  return ModelConfig(
      features=features, vocab_size=100_352, norm_epsilon=1e-5, mlp='swiglu',
      mlp_factor=mlp_features / features, use_bias=False, embed_std=0.02,
      embed_scale=12.0, logit_scale=1 / logit_divisor,
      layer_scales=(1.0, residual), mlp_scales=(1.0, residual),
      tie_embeddings=True, scan_layers=True,
      layer_options=dict(
          mamba2=dict(state_features=128, head_features=head_features),
          attention=dict(
              num_heads=num_heads, num_kv_heads=num_kv_heads, window=4096,
              on_full='error', rotary_fraction=0.0,
              score_scale=num_heads / features,
          ),
      ),
      **(defaults | changes),
  )


def _experts(
    num_experts: int, experts_per_token: int, shared_features: int
) -> dict[str, Any]:
  return dict(
      num_experts=num_experts, experts_per_token=experts_per_token,
      shared_features=shared_features,
  )


PRESETS = dict(
    granite_4_h_350m=_granite(
        768, 2048, 12, 4, 3.0, residual=0.246, head_features=32,
        # With attention in blocks 10, 13, 17 and 27.
        layer=patterns.pattern([
            'attention' if i in (10, 13, 17, 27) else 'mamba2'
            for i in range(32)
        ]),
        num_layers=32,
    ),
    granite_4_h_1b=_granite(1536, 4096, 12, 4, 6.0),
    granite_4_h_tiny=_granite(
        1536, 512, 12, 4, 6.0, experts=_experts(64, 6, 1024)
    ),
    granite_4_h_small=_granite(
        4096, 768, 32, 8, 16.0, experts=_experts(72, 10, 1536)
    ),
)
