"""OLMo Hybrid: `OlmoHybridForCausalLM` of `transformers`."""

from typing import Any

from rnnzoo.convert import attention
from rnnzoo.convert import delta
from rnnzoo.convert import gated_delta_net
from rnnzoo.convert import tables
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

_LAYERS = dict(linear_attention='gated_delta_net', full_attention='attention')
_DELTA = dict(
    a_proj='decay', b_proj='beta', g_proj='gate', o_proj='output',
)
_ATTENTION = dict(
    query='q_proj', key='k_proj', value='v_proj', output='o_proj',
    query_norm='q_norm', key_norm='k_norm',
)
# Of the two norms of a block. In blocks with attention they follow the branch.
_NORMS = dict(
    gated_delta_net=('attention_layer_norm', 'feedforward_layer_norm'),
    attention=('post_attention_layernorm', 'post_feedforward_layernorm'),
)


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(  # Initial values.
      'linear_a_log_max', 'linear_a_log_min', 'linear_dt_init_floor',
      'linear_dt_max', 'linear_dt_min',
  )
  settings.must_be('hidden_act', 'silu')
  settings.must_be('attention_bias', False)
  features = settings.size('hidden_size', 3840)
  hidden = settings.size('intermediate_size', 11_008)
  epsilon = settings.positive('rms_norm_eps', 1e-6)
  depth = settings.size('num_hidden_layers', 32)
  kinds = [
      'full_attention' if i % 4 == 3 else 'linear_attention'
      for i in range(depth)
  ]
  if 'full_attention' not in kinds:
    kinds[-1] = 'full_attention'
  layers = settings.layers('layer_types', tuple(kinds), depth, _LAYERS)
  options = attention.options(
      settings, features, heads=30, kv_heads=None, longest=65_536
  )
  if not _rotates(settings):
    options['rotary_fraction'] = 0.0
  heads = settings.size('linear_num_key_heads', options['num_heads'])
  size = settings.size('linear_key_head_dim', int(0.75 * features / heads))
  return ModelConfig(
      layer=patterns.pattern(layers), num_layers=depth, features=features,
      vocab_size=settings.size('vocab_size', 100_352), norm_epsilon=epsilon,
      out_norm_layers='attention' if 'attention' in layers else '',
      mlp='swiglu', mlp_factor=tables.ratio(hidden, features), use_bias=False,
      tie_embeddings=settings.take('tie_word_embeddings', False),
      layer_options=dict(
          gated_delta_net=dict(
              num_heads=heads, num_value_heads=settings.size(
                  'linear_num_value_heads', options['num_heads']
              ),
              key_features=size,
              value_features=settings.size('linear_value_head_dim', 2 * size),
              conv_kernel=settings.size('linear_conv_kernel_dim', 4),
              allow_negative_eigenvalues=settings.take(
                  'linear_allow_neg_eigval', True
              ),
              norm_epsilon=1e-5,  # Whatever that of the blocks is.
          ),
          attention=options | dict(
              normalize_qk=True, qk_norm='rms_all', norm_epsilon=epsilon
          ),
      ),
  )


def _rotates(settings: Settings) -> bool:
  """Whether attention rotates: not if the file says that theta is null."""
  values = settings.take('rope_parameters', {})
  if 'rope_theta' in values:
    return values['rope_theta'] is not None
  return not settings.is_null('rope_theta')


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, stacks = model.config, tables.first_stacks(model)
  kinds = {layer: kind for kind, layer in _LAYERS.items()}
  values = dict(
      **tables.common_values(model),
      intermediate_size=tables.mlp_features(model),
      layer_types=[kinds[name] for name in config.layer_names],
      pad_token_id=None,  # By default one that a small vocabulary has not.
  )
  if 'gated_delta_net' in stacks:
    layer = stacks['gated_delta_net'].layer
    values |= gated_delta_net.values(layer)
    values['linear_allow_neg_eigval'] = layer.allow_negative_eigenvalues
  if 'attention' in stacks:
    layer = stacks['attention'].layer
    values |= attention.values(layer)
    if not layer.rotary_features:
      values |= dict(
          rope_parameters=dict(rope_type='default', rope_theta=None),
          rope_theta=None,
      )
  return values


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('model.norm', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name, kind = f'model.layers.{i}', config.layer_names[i]
    norm, mlp_norm = _NORMS[kind]
    rows |= {
        **block.norm(f'{name}.{norm}', 'norm'),
        **block.norm(f'{name}.{mlp_norm}', 'mlp_norm'),
    }
    rows |= block.mlp(f'{name}.mlp')
    if kind == 'attention':
      rows |= attention.rows(block, f'{name}.self_attn', _ATTENTION)
    else:
      rows |= _delta(
          block, f'{name}.linear_attn', config.layer_options[kind]
      )
  return rows


def _delta(block: tables.Block, name: str, options) -> tables.Table:
  """Returns the tensors of Gated DeltaNet."""
  return {
      **gated_delta_net.rows(block, name, _DELTA, 'o_norm'),
      **delta.separate(
          block, name, keys=options['num_heads'] * options['key_features'],
          values=options['num_value_heads'] * options['value_features'],
      ),
  }


FAMILY = Family(
    architecture='OlmoHybridForCausalLM',
    layers=('gated_delta_net', 'attention'), read=read, write=write,
    table=table, embedding='model.embed_tokens.weight', head='lm_head.weight',
)
