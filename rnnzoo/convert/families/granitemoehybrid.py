"""Granite 4.0: `GraniteMoeHybridForCausalLM` of `transformers`."""

from typing import Any

from rnnzoo.convert import attention
from rnnzoo.convert import tables
from rnnzoo.convert.families import bamba
from rnnzoo.convert.families import mamba2
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

_LAYERS = dict(linear_attention='mamba2', full_attention='attention')


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(  # Of a training.
      'init_method', 'output_router_logits', 'router_aux_loss_coef'
  )
  settings.must_be('hidden_act', 'silu')
  settings.must_be('attention_bias', False)
  settings.must_be('normalization_function', 'rmsnorm')
  settings.must_be('position_embedding_type', 'nope', 'rope')
  features = settings.size('hidden_size', 4096)
  epsilon = settings.positive('rms_norm_eps', 1e-6)
  depth = settings.size('num_hidden_layers', 32)
  layers = settings.layers(
      'layer_types', ('linear_attention',) * depth, depth, _LAYERS
  )
  options = attention.options(
      settings, features, heads=32, kv_heads=None, longest=2048
  )
  options['score_scale'] = settings.positive('attention_multiplier', 1.0)
  if settings.take('position_embedding_type', 'nope') == 'nope':
    options['rotary_fraction'] = 0.0
  shared = settings.size('shared_intermediate_size', 1024)
  hidden = settings.size('intermediate_size', 11_008)
  count = settings.take('num_local_experts', 8)
  if count > 0:
    chosen = settings.size('num_experts_per_tok', 2)
    experts = dict(
        num_experts=count, experts_per_token=chosen, shared_features=shared
    )
  else:
    settings.no_effect('num_experts_per_tok')
    experts = {}
  scales = 1.0, float(settings.positive('residual_multiplier', 1.0))
  return ModelConfig(
      layer=patterns.pattern(layers), num_layers=depth, features=features,
      vocab_size=settings.size('vocab_size', 32_000), norm_epsilon=epsilon,
      mlp='swiglu', experts=experts, use_bias=False,
      mlp_factor=tables.ratio(hidden if experts else shared, features),
      layer_scales=scales, mlp_scales=scales,
      embed_scale=settings.positive('embedding_multiplier', 1.0),
      logit_scale=1 / settings.positive('logits_scaling', 1.0),
      tie_embeddings=settings.take('tie_word_embeddings', False),
      layer_options=dict(
          mamba2=bamba.mixer(settings, features, epsilon), attention=options
      ),
  )


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, stacks = model.config, tables.first_stacks(model)
  kinds = {layer: kind for kind, layer in _LAYERS.items()}
  values = dict(
      **tables.common_values(model),
      layer_types=[kinds[name] for name in config.layer_names],
      embedding_multiplier=config.embed_scale,
      logits_scaling=1 / config.logit_scale,
      residual_multiplier=config.layer_scales[1],
  )
  experts = tables.first_with(model, 'experts')
  if experts is None:
    values |= dict(
        num_local_experts=0, shared_intermediate_size=tables.mlp_features(model)
    )
  else:
    values |= dict(
        num_local_experts=experts.num_experts,
        num_experts_per_tok=experts.experts_per_token,
        intermediate_size=experts.mlp_in.shape[-1],
        shared_intermediate_size=experts.shared_in.kernel.shape[-1],
    )
  values |= bamba.mixers_values(stacks, config.features)
  if 'attention' in stacks:
    layer = stacks['attention'].layer
    values |= attention.values(layer)
    values['attention_multiplier'] = layer.score_scale
    values['position_embedding_type'] = (
        'rope' if layer.rotary_features else 'nope'
    )
  return values


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('model.norm', 'norm'))
  shared = 'experts.shared_' if config.experts else 'mlp_'
  kernel = tables.transposed
  for i, block in enumerate(tables.blocks(config)):
    name = f'model.layers.{i}'
    rows |= {
        **block.norm(f'{name}.input_layernorm', 'norm'),
        **block.norm(f'{name}.post_attention_layernorm', 'mlp_norm'),
        f'{name}.shared_mlp.input_linear.weight': (
            block.row(f'{shared}gate.kernel', kernel)
            + block.row(f'{shared}in.kernel', kernel)
        ),
        **block.linear(f'{name}.shared_mlp.output_linear', f'{shared}out'),
    }
    if config.experts:
      part = f'{name}.block_sparse_moe'
      rows |= {
          **block.linear(f'{part}.router.layer', 'experts.router'),
          f'{part}.input_linear.weight': block.row(
              'experts.mlp_in', tables.experts_inner
          ),
          f'{part}.output_linear.weight': block.row(
              'experts.mlp_out', tables.experts_outer
          ),
      }
    if config.layer_names[i] == 'attention':
      rows |= attention.rows(block, f'{name}.self_attn', attention.MAPS)
    else:
      options = config.layer_options['mamba2']
      rows |= mamba2.mixer(block, f'{name}.mamba', options)
  return rows


FAMILY = Family(
    architecture='GraniteMoeHybridForCausalLM', layers=('mamba2', 'attention'),
    read=read, write=write, table=table, embedding='model.embed_tokens.weight',
    head='lm_head.weight',
)
