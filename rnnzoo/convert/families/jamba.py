"""Jamba: `JambaForCausalLM` of `transformers`."""

from collections.abc import Collection
from typing import Any

from rnnzoo import errors
from rnnzoo.convert import attention
from rnnzoo.convert import tables
from rnnzoo.convert.families import mamba
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig

_NORMS = ('dt', 'b', 'c')  # After the map of Mamba to step sizes, B and C.


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(  # Speed and memory, and the loss of a training.
      'calc_logits_for_entire_prompt', 'num_logits_to_keep',
      'output_router_logits', 'router_aux_loss_coef', 'use_associative_scan',
      'use_mamba_kernels', 'use_mambapy',
  )
  settings.must_be('hidden_act', 'silu')
  settings.must_be('mamba_proj_bias', False)
  settings.must_be('mamba_inner_layernorms', True)
  settings.must_be('sliding_window', None)
  features = settings.size('hidden_size', 4096)
  factor = tables.ratio(settings.size('intermediate_size', 14_336), features)
  epsilon = settings.positive('rms_norm_eps', 1e-6)
  depth = settings.size('num_hidden_layers', 32)
  options = attention.options(
      settings, features, heads=32, kv_heads=8, longest=262_144, fraction=0.0
  )
  chosen = _regular(settings, 'attn_layer', 8, 4, depth)
  count = settings.size('num_experts', 16)
  sparse = _regular(settings, 'expert_layer', 2, 1, depth)
  dense = {*range(depth)} - (sparse if count > 1 else set())
  layers = ['attention' if i in chosen else 'mamba' for i in range(depth)]
  return ModelConfig(
      num_layers=depth, features=features, norm_epsilon=epsilon,
      vocab_size=settings.size('vocab_size', 65_536), mlp='swiglu',
      mlp_factor=factor, use_bias=False, experts=dict(
          num_experts=count, renormalize=False,
          experts_per_token=settings.size('num_experts_per_tok', 2),
      ),
      tie_embeddings=settings.take('tie_word_embeddings', False),
      layer_options=dict(
          mamba=dict(
              state_features=settings.size('mamba_d_state', 16),
              expansion_factor=float(settings.size('mamba_expand', 2)),
              conv_kernel=settings.size('mamba_d_conv', 4),
              dt_rank=settings.size('mamba_dt_rank', -(-features // 16)),
              use_bias=False,
              use_conv_bias=settings.take('mamba_conv_bias', True),
              selection_norm='scaled', selection_norm_epsilon=epsilon,
          ),
          attention=options,
      ),
      **tables.with_dense(layers, dense, factor),
  )


def _regular(
    settings: Settings, name: str, period: int, offset: int, depth: int
) -> set[int]:
  """Returns the depths that a period and an offset give."""
  period = settings.size(f'{name}_period', period)
  offset = settings.take(f'{name}_offset', offset)
  return {i for i in range(depth) if i % period == offset}


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, stacks = model.config, tables.first_stacks(model)
  depth = config.num_layers
  experts = tables.first_with(model, 'experts')
  width = (
      tables.mlp_features(model) if experts is None
      else experts.mlp_in.shape[-1]
  )
  values = dict(
      **tables.common_values(model), intermediate_size=width,
      **_period('attn_layer', depth, [
          i for i, name in enumerate(config.layer_names) if name == 'attention'
      ]),
      num_experts=1,
  )
  if experts is not None:
    dense = tables.dense_blocks(config)
    values |= dict(
        num_experts=experts.num_experts,
        num_experts_per_tok=experts.experts_per_token,
        **_period('expert_layer', depth, {*range(depth)} - {*dense}),
    )
  if 'mamba' in stacks:
    layer = stacks['mamba'].layer
    values |= dict(
        mamba_d_state=layer.state_features, mamba_d_conv=layer.conv_kernel,
        mamba_expand=layer.hidden_features // layer.in_features,
        mamba_dt_rank=layer.dt_rank,
        mamba_conv_bias=layer.conv_bias is not None,
    )
  if 'attention' in stacks:
    layer = stacks['attention'].layer
    values |= dict(
        num_attention_heads=layer.num_heads,
        num_key_value_heads=layer.num_kv_heads,
    )
  return values


def _period(name: str, depth: int, chosen: Collection[int]) -> dict[str, int]:
  """Returns the shortest period, and an offset, that give these depths.

  Raises:
    UserValueError: If there are none.
  """
  for period in range(1, depth + 2):
    for offset in range(period):
      if {*range(offset, depth, period)} == {*chosen}:
        return {f'{name}_period': period, f'{name}_offset': offset}
  raise errors.UserValueError(
      f'{name}s must be at equal distances, got those at {sorted(chosen)}.'
  )


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('model.final_layernorm', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name = f'model.layers.{i}'
    part = f'{name}.feed_forward'
    rows |= {
        **block.norm(f'{name}.input_layernorm', 'norm'),
        **block.norm(f'{name}.pre_ff_layernorm', 'mlp_norm'),
    }
    experts = config.at_depth(i).experts
    if experts:
      rows |= block.linear(f'{part}.router', 'experts.router')
      rows |= block.experts(
          f'{part}.experts', experts['num_experts'], 'gate_proj', 'up_proj',
          'down_proj',
      )
    else:
      rows |= block.mlp(part)
    if config.layer_names[i] == 'attention':
      rows |= attention.rows(block, f'{name}.self_attn', attention.MAPS)
      continue
    layer = f'{name}.mamba'
    rows |= mamba.mixer(block, layer, config.layer_options['mamba'])
    for number, kind in enumerate(_NORMS):
      rows |= block.norm(
          f'{layer}.{kind}_layernorm', f'layer.selection_norms.{number}'
      )
  return rows


FAMILY = Family(
    architecture='JambaForCausalLM', layers=('mamba', 'attention'), read=read,
    write=write, table=table, embedding='model.embed_tokens.weight',
    head='lm_head.weight',
)
