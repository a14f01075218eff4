"""Qwen3.5, dense: `Qwen3_5ForCausalLM` of `transformers`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rnnzoo.convert import attention
from rnnzoo.convert import gated_delta_net
from rnnzoo.convert import tables
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

LAYERS = dict(
    linear_attention='gated_delta_net', full_attention='gated_attention'
)
_DELTA = dict(
    in_proj_qkv='qkv', in_proj_z='gate', in_proj_b='beta', in_proj_a='decay',
    out_proj='output',
)
_ATTENTION = dict(
    key='k_proj', value='v_proj', output='o_proj', query_norm='q_norm',
    key_norm='k_norm',
)


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  # What released files say of all models, and of a head for further tokens.
  settings.must_be('attn_output_gate', True)
  settings.must_be('mlp_only_layers', [])
  settings.no_effect(
      'mamba_ssm_dtype', 'mtp_num_hidden_layers', 'mtp_use_dedicated_embeddings'
  )
  features = settings.size('hidden_size', 4096)
  hidden = settings.size('intermediate_size', 12_288)
  vocabulary = settings.size('vocab_size', 248_320)
  fields, layers = read_common(
      settings, features, depth=32, kv_heads=4,
      # Positions of images in a text without any.
      no_effect=('mrope_interleaved', 'mrope_section'),
  )
  return ModelConfig(
      layer=patterns.pattern(layers), features=features, vocab_size=vocabulary,
      mlp_factor=tables.ratio(hidden, features), **fields,
  )


def read_common(
    settings: Settings, features: int, *, depth: int, kv_heads: int,
    no_effect: Sequence[str] = (),
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Returns most fields of a config, and the layers of all blocks.

  Args:
    settings: The file's values.
    features: `hidden_size`.
    depth: The number of blocks, if the file does not say.
    kv_heads: That of heads of keys and values, likewise.
    no_effect: Names in `rope_parameters` to leave out of account.
  """
  settings.must_be('hidden_act', 'silu')
  settings.must_be('attention_bias', False)
  epsilon = settings.positive('rms_norm_eps', 1e-6)
  depth = settings.size('num_hidden_layers', depth)
  every = settings.size('full_attention_interval', 4)
  layers = settings.layers('layer_types', tuple(
      'linear_attention' if i % every else 'full_attention'
      for i in range(1, depth + 1)
  ), depth, LAYERS)
  options = attention.options(
      settings, features, heads=16, kv_heads=kv_heads, head_features=256,
      longest=32_768, fraction=0.25, no_effect=no_effect,
  )
  fields = dict(
      num_layers=depth, norm='rms1', norm_epsilon=epsilon, mlp='swiglu',
      use_bias=False,
      tie_embeddings=settings.take('tie_word_embeddings', False),
      layer_options=dict(
          gated_delta_net=gated_delta_net.options(settings, epsilon),
          gated_attention=options | dict(qk_norm='rms1', norm_epsilon=epsilon),
      ),
  )
  return fields, layers


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  return write_common(model) | dict(
      intermediate_size=tables.mlp_features(model)
  )


def write_common(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` that do not belong to MLPs."""
  config, stacks = model.config, tables.first_stacks(model)
  kinds = {layer: kind for kind, layer in LAYERS.items()}
  values = dict(
      **tables.common_values(model),
      layer_types=[kinds[name] for name in config.layer_names],
  )
  if 'gated_delta_net' in stacks:
    values |= gated_delta_net.values(stacks['gated_delta_net'].layer)
  if 'gated_attention' in stacks:
    layer = stacks['gated_attention'].layer
    values |= attention.values(layer, with_fraction=True)
    values['head_dim'] = layer.head_features
  return values


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = table_common(config)
  for i, block in enumerate(tables.blocks(config)):
    name = f'model.layers.{i}'
    rows |= block.mlp(f'{name}.mlp')
    if config.layer_names[i] == 'gated_delta_net':
      rows |= delta(block, f'{name}.linear_attn', _DELTA)
  return rows


def table_common(config: ModelConfig) -> dict[str, tables.Row]:
  """Returns the tensors of norms and of attention."""
  rows = dict(tables.whole_norm('model.norm', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name = f'model.layers.{i}'
    rows |= {
        **block.norm(f'{name}.input_layernorm', 'norm'),
        **block.norm(f'{name}.post_attention_layernorm', 'mlp_norm'),
    }
    if config.layer_names[i] == 'gated_attention':
      layer = f'{name}.self_attn'
      rows |= attention.rows(block, layer, _ATTENTION)
      rows[f'{layer}.q_proj.weight'] = _queries(
          block, **config.layer_options['gated_attention']
      )
  return rows


def delta(
    block: tables.Block, name: str, names: Mapping[str, str]
) -> dict[str, tables.Row]:
  """Returns the tensors of Gated DeltaNet, with the maps of these names."""
  rows = dict(gated_delta_net.rows(block, name, names, 'norm'))
  rows[f'{name}.conv1d.weight'] = block.row('layer.conv', tables.taps)
  return rows


def _queries(
    block: tables.Block, *, num_heads: int, head_features: int, **unused
) -> tables.Row:
  """Returns a matrix that has the query and the gate of each head."""
  del unused
  row = ()
  for head in range(num_heads):
    view = tables.transposed_rows(
        head * head_features, (head + 1) * head_features
    )
    row += block.row('layer.query.kernel', view)
    row += block.row('layer.gate.kernel', view)
  return row


FAMILY = Family(
    architecture='Qwen3_5ForCausalLM',
    layers=('gated_delta_net', 'gated_attention'), read=read, write=write,
    table=table, embedding='model.embed_tokens.weight', head='lm_head.weight',
    prefix='model.language_model.',
    unused=('mtp.', 'model.visual.'),  # `mtp` predicts further tokens.
)
