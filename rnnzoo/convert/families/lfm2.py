"""LFM2: `Lfm2ForCausalLM` of `transformers`."""

from typing import Any

from rnnzoo.convert import attention
from rnnzoo.convert import tables
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

_LAYERS = dict(conv='short_conv', full_attention='attention')
_ATTENTION = dict(
    query='q_proj', key='k_proj', value='v_proj', output='out_proj',
    query_norm='q_layernorm', key_norm='k_layernorm',
)


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(  # Initial values.
      'block_mlp_init_scale', 'block_out_init_scale', 'block_use_xavier_init',
      'conv_use_xavier_init',
  )
  for name in ('block_use_swiglu', 'use_pos_enc'):
    settings.must_be(name, True)
  features = settings.size('hidden_size', 2560)
  for name in ('block_dim', 'conv_dim', 'conv_dim_out'):
    settings.must_be(name, features)
  epsilon = settings.positive('norm_eps', 1e-5)
  settings.must_be('block_norm_eps', epsilon)
  depth = settings.size('num_hidden_layers', 32)
  options = attention.options(
      settings, features, heads=32, kv_heads=8, longest=128_000, theta=1e6
  )
  settings.must_be('num_heads', options['num_heads'])
  settings.must_be('theta', options['max_wavelength'])
  # Old files list the blocks with attention.
  chosen = settings.indices('full_attn_idxs', tuple(range(depth)))
  layers = settings.layers('layer_types', tuple(
      'full_attention' if i in chosen else 'conv' for i in range(depth)
  ), depth, _LAYERS)
  return ModelConfig(
      layer=patterns.pattern(layers), num_layers=depth, features=features,
      vocab_size=settings.size('vocab_size', 65_536), norm_epsilon=epsilon,
      mlp='swiglu', mlp_factor=tables.ratio(_hidden(settings), features),
      use_bias=False, tie_embeddings=settings.take(
          'tie_embedding', settings.take('tie_word_embeddings', True)
      ),
      layer_options=dict(
          short_conv=dict(
              conv_kernel=settings.size('conv_L_cache', 3),
              use_bias=settings.take('conv_bias', False),
          ),
          attention=options | dict(normalize_qk=True, norm_epsilon=epsilon),
      ),
  )


def _hidden(settings: Settings) -> int:
  """The hidden features of an MLP: two thirds of a size, rounded up."""
  size = settings.size('intermediate_size', 12_288)
  size = settings.size('block_ff_dim', size)
  factor = settings.positive('block_ffn_dim_multiplier', 1.0)
  multiple = settings.size('block_multiple_of', 256)
  if not settings.take('block_auto_adjust_ff_dim', True):
    return size
  return -(-int(factor * int(2 * size / 3)) // multiple) * multiple


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, stacks = model.config, tables.first_stacks(model)
  kinds = {layer: kind for kind, layer in _LAYERS.items()}
  values = dict(
      hidden_size=config.features, num_hidden_layers=config.num_layers,
      intermediate_size=tables.mlp_features(model),
      block_auto_adjust_ff_dim=False, vocab_size=config.vocab_size,
      layer_types=[kinds[name] for name in config.layer_names],
      norm_eps=model.norm.epsilon, tie_word_embeddings=config.tie_embeddings,
  )
  if 'short_conv' in stacks:
    layer = stacks['short_conv'].layer
    values |= dict(
        conv_L_cache=layer.conv_kernel, conv_bias=layer.conv_bias is not None
    )
  if 'attention' in stacks:
    values |= attention.values(stacks['attention'].layer)
  return values


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('model.embedding_norm', 'norm'))
  bias = config.layer_options['short_conv']['use_bias']
  for i, block in enumerate(tables.blocks(config)):
    name = f'model.layers.{i}'
    rows |= {
        **block.norm(f'{name}.operator_norm', 'norm'),
        **block.norm(f'{name}.ffn_norm', 'mlp_norm'),
        **block.linear(f'{name}.feed_forward.w1', 'mlp_gate'),
        **block.linear(f'{name}.feed_forward.w3', 'mlp_in'),
        **block.linear(f'{name}.feed_forward.w2', 'mlp_out'),
    }
    if config.layer_names[i] == 'attention':
      rows |= attention.rows(block, f'{name}.self_attn', _ATTENTION)
      continue
    layer = f'{name}.conv'
    # Two gates and x, one after another.
    rows |= {
        **block.linear(f'{layer}.in_proj', 'layer.input', bias=bias),
        **block.linear(f'{layer}.out_proj', 'layer.output', bias=bias),
        f'{layer}.conv.weight': block.row('layer.conv', tables.taps),
    }
    if bias:
      rows[f'{layer}.conv.bias'] = block.row('layer.conv_bias')
  return rows


FAMILY = Family(
    architecture='Lfm2ForCausalLM', layers=('short_conv', 'attention'),
    read=read, write=write, table=table,
    embedding='model.embed_tokens.weight', head='lm_head.weight',
)
