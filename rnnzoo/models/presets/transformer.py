"""Transformers to compare with: GPT-2 (Radford et al., 2019) as in nanoGPT."""

from typing import Any

from rnnzoo.models.config import ModelConfig


def _transformer(
    num_layers: int,
    features: int,
    num_heads: int,
    context: int,
    **fields: Any,
) -> ModelConfig:
  """A GPT-2 as nanoGPT has it, with rotary instead of learned positions.

  Therefore it has `context * features` parameters less than GPT-2. nanoGPT does
  not count these parameters either. A text may be longer than the context: each
  token sees the last `context` tokens.
  """
  use_bias = fields.get('use_bias', True)
  return ModelConfig(
      layer='attention', num_layers=num_layers, features=features,
      norm='layer', norm_epsilon=1e-5, mlp='gelu', mlp_factor=4,
      tie_embeddings=True, embed_std=0.02,
      layer_options=dict(
          num_heads=num_heads, window=context, use_bias=use_bias,
          use_output_bias=use_bias, init_std=0.02,
          output_scale=1 / (2 * num_layers),
      ),
      **fields,
  )


PRESETS = dict(
    gpt2_124m=_transformer(12, 768, 12, 1024),
    nano_gpt_shakespeare=_transformer(
        6, 384, 6, 256, use_bias=False, dropout=0.2
    ),
)
