"""Falcon-H1: `FalconH1ForCausalLM` of `transformers`."""

from typing import Any

from rnnzoo import errors
from rnnzoo.convert import attention
from rnnzoo.convert import tables
from rnnzoo.convert.families import bamba
from rnnzoo.convert.families import mamba2
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig

# Both read the same input in every block.
_LAYER = 'mamba2+attention'
_MAMBA, _ATTENTION = 'layer.branches.0', 'layer.branches.1'


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(  # Initial values, and what no code reads.
      'mlp_expansion_factor', 'num_logits_to_keep', 'time_step_floor',
      'time_step_max', 'time_step_min', 'time_step_rank',
  )
  settings.must_be('hidden_act', 'silu')
  settings.must_be('mamba_use_mlp', True)
  for name in ('attention_bias', 'mlp_bias', 'projectors_bias'):
    settings.must_be(name, False)
  features = settings.size('hidden_size', 4096)
  hidden = settings.size('intermediate_size', 14_336)
  epsilon = settings.positive('rms_norm_eps', 1e-5)
  inner = settings.size('mamba_expand', 2) * features
  # Null is not the same as nothing here.
  inner = settings.size(
      'mamba_d_ssm', inner if settings.is_null('mamba_d_ssm') else 1024
  )
  heads = settings.size('num_attention_heads', 32)
  of_gate, of_mlp = _multipliers(settings, 'mlp_multipliers', 2)
  options = attention.options(
      settings, features, heads=heads, kv_heads=8,
      head_features=features // heads, longest=8192,
  )
  key = settings.take('key_multiplier', 1.0)
  before_gate = settings.take('mamba_norm_before_gate', True)
  norm = 'before_gate' if before_gate else 'after_gate'
  norm = norm if settings.take('mamba_rms_norm', False) else 'none'
  return ModelConfig(
      layer=_LAYER, num_layers=settings.size('num_hidden_layers', 32),
      features=features, vocab_size=settings.size('vocab_size', 128_000),
      norm_epsilon=epsilon, mlp='swiglu',
      mlp_factor=tables.ratio(hidden, features), use_bias=False,
      mlp_gate_scale=of_gate, mlp_scales=(1.0, of_mlp),
      embed_scale=settings.positive('embedding_multiplier', 1.0),
      logit_scale=settings.take('lm_head_multiplier', 1.0),
      tie_embeddings=settings.take('tie_word_embeddings', False),
      layer_options={
          'mamba2': dict(
              bamba.mixer(settings, features, epsilon, inner=inner),
              output_norm=norm,
              projection_scales=_multipliers(settings, 'ssm_multipliers', 5),
          ),
          'attention': options | dict(
              score_scale=key * options['head_features']**-0.5
          ),
          _LAYER: dict(
              input_scales=(
                  settings.take('ssm_in_multiplier', 1.0),
                  settings.take('attention_in_multiplier', 1.0),
              ),
              output_scales=(
                  settings.take('ssm_out_multiplier', 1.0),
                  settings.take('attention_out_multiplier', 1.0),
              ),
          ),
      },
  )


def _multipliers(
    settings: Settings, name: str, count: int
) -> tuple[float, ...]:
  """Returns a list of factors, 1 by default."""
  values = settings.numbers(name, (1.0,) * count)
  if len(values) != count:
    raise errors.UserValueError(
        f'config.json: {name} must be {count} numbers, got {list(values)}.'
    )
  return values


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, layer = model.config, model.backbone.stacks[0].layer
  mixer, other = layer.branches
  return dict(
      **tables.common_values(model),
      intermediate_size=tables.mlp_features(model),
      mamba_d_ssm=mixer.hidden_features, **bamba.mixer_values(mixer),
      mamba_rms_norm=mixer.output_norm != 'none',
      mamba_norm_before_gate=mixer.output_norm != 'after_gate',
      **attention.values(other), head_dim=other.head_features,
      embedding_multiplier=config.embed_scale,
      lm_head_multiplier=config.logit_scale,
      mlp_multipliers=[config.mlp_gate_scale, config.mlp_scales[1]],
      ssm_multipliers=list(mixer.projection_scales),
      ssm_in_multiplier=layer.input_scales[0],
      attention_in_multiplier=layer.input_scales[1],
      ssm_out_multiplier=layer.output_scales[0],
      attention_out_multiplier=layer.output_scales[1],
      key_multiplier=other.score_scale * other.head_features**0.5,
  )


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('model.final_layernorm', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name = f'model.layers.{i}'
    rows |= {
        **block.norm(f'{name}.input_layernorm', 'norm'),
        **block.norm(f'{name}.pre_ff_layernorm', 'mlp_norm'),
        **block.mlp(f'{name}.feed_forward'),
        **mamba2.mixer(
            block, f'{name}.mamba', config.layer_options['mamba2'], _MAMBA
        ),
        **attention.rows(
            block, f'{name}.self_attn', attention.MAPS, layer=_ATTENTION
        ),
    }
  return rows


FAMILY = Family(
    architecture='FalconH1ForCausalLM', layers=(_LAYER,), read=read,
    write=write, table=table, embedding='model.embed_tokens.weight',
    head='lm_head.weight',
)
