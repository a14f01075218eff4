"""Qwen3-Next: `Qwen3NextForCausalLM` of `transformers`."""

from collections.abc import Iterable
from typing import Any

from rnnzoo.convert import tables
from rnnzoo.convert.families import qwen3_5_text
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect('output_router_logits', 'router_aux_loss_coef')
  settings.must_be('use_sliding_window', False)
  features = settings.size('hidden_size', 2048)
  vocabulary = settings.size('vocab_size', 151_936)
  fields, layers = qwen3_5_text.read_common(
      settings, features, depth=48, kv_heads=2
  )
  ratio = lambda name, default: tables.ratio(
      settings.size(name, default), features
  )
  every = settings.size('decoder_sparse_step', 1)
  dense = {
      *settings.indices('mlp_only_layers', ()),
      *(i for i in range(len(layers)) if (i + 1) % every),
  } & {*range(len(layers))}
  return ModelConfig(
      features=features, vocab_size=vocabulary,
      mlp_factor=ratio('moe_intermediate_size', 512),
      experts=dict(
          num_experts=settings.size('num_experts', 512),
          experts_per_token=settings.size('num_experts_per_tok', 10),
          renormalize=settings.take('norm_topk_prob', True),
          shared_features=settings.size('shared_expert_intermediate_size', 512),
          weigh_shared=True,
      ),
      **tables.with_dense(layers, dense, ratio('intermediate_size', 5632)),
      **fields,
  )


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  values = qwen3_5_text.write_common(model)
  values['mlp_only_layers'] = tables.dense_blocks(model.config)
  if values['mlp_only_layers']:
    values['intermediate_size'] = tables.mlp_features(model)
  experts = tables.first_with(model, 'experts')
  if experts is not None:
    values |= dict(
        num_experts=experts.num_experts,
        num_experts_per_tok=experts.experts_per_token,
        norm_topk_prob=experts.renormalize,
        moe_intermediate_size=experts.mlp_in.shape[-1],
        shared_expert_intermediate_size=experts.shared_in.kernel.shape[-1],
    )
  return values


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = qwen3_5_text.table_common(config)
  for i, block in enumerate(tables.blocks(config)):
    name = f'model.layers.{i}'
    experts = config.at_depth(i).experts
    if experts:
      rows |= _experts(block, f'{name}.mlp', experts['num_experts'])
    else:
      rows |= block.mlp(f'{name}.mlp')
    if config.layer_names[i] == 'gated_delta_net':
      layer = f'{name}.linear_attn'
      rows |= qwen3_5_text.delta(block, layer, dict(out_proj='output'))
      options = config.layer_options['gated_delta_net']
      rows |= _projections(block, layer, options)
  return rows


def _experts(block: tables.Block, name: str, count: int) -> tables.Table:
  """Returns the tensors of a mixture of experts."""
  rows = {
      **block.linear(f'{name}.gate', 'experts.router'),
      **block.linear(f'{name}.shared_expert_gate', 'experts.shared_weight'),
      **block.experts(
          f'{name}.experts', count, 'gate_proj', 'up_proj', 'down_proj'
      ),
  }
  for part, path in dict(gate='gate', up='in', down='out').items():
    rows |= block.linear(
        f'{name}.shared_expert.{part}_proj', f'experts.shared_{path}'
    )
  return rows


def _projections(block: tables.Block, name: str, options) -> tables.Table:
  """Returns two matrices that have all rows of a head of keys together."""
  heads, size = options['num_heads'], options['key_features']
  each = options['num_value_heads'] // heads
  wide = each * options['value_features']
  qkvz = ba = ()
  for i in range(heads):
    qkvz += _rows(block, (
        ('qkv', i * size, size), ('qkv', (heads + i) * size, size),
        ('qkv', 2 * heads * size + i * wide, wide), ('gate', i * wide, wide),
    ))
    ba += _rows(block, (('beta', i * each, each), ('decay', i * each, each)))
  return {f'{name}.in_proj_qkvz.weight': qkvz, f'{name}.in_proj_ba.weight': ba}


def _rows(
    block: tables.Block, parts: Iterable[tuple[str, int, int]]
) -> tables.Row:
  """Returns rows of maps, each with its first row and their number."""
  row = ()
  for path, start, count in parts:
    view = tables.transposed_rows(start, start + count)
    row += block.row(f'layer.{path}.kernel', view)
  return row


FAMILY = Family(
    architecture='Qwen3NextForCausalLM',
    layers=('gated_delta_net', 'gated_attention'), read=read, write=write,
    table=table, embedding='model.embed_tokens.weight', head='lm_head.weight',
    unused=('mtp.',),  # It predicts further tokens.
)
