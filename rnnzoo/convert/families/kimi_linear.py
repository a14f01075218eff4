"""Kimi Linear: `KimiLinearForCausalLM` of `transformers`."""

from typing import Any

from rnnzoo.convert import attention
from rnnzoo.convert import delta
from rnnzoo.convert import tables
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig

_LAYERS = dict(linear_attention='kda', full_attention='latent_attention')
_KDA = dict(
    f_a_proj='decay_in', f_b_proj='decay_out', b_proj='beta',
    g_a_proj='gate_in', g_b_proj='gate_out', o_proj='output',
)
_SHARED = dict(gate='shared_gate', up='shared_in', down='shared_out')


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(
      'attention_dropout', 'output_router_logits', 'pretraining_tp',
      # No attention rotates, and heads have the sizes of other names.
      'head_dim', 'rope_parameters', 'rope_scaling', 'rope_theta',
  )
  settings.must_be('hidden_act', 'silu')
  settings.must_be('attention_bias', False)
  settings.must_be('tie_word_embeddings', False)  # `transformers` ignores it.
  # What released files say of all models.
  settings.must_be('mla_use_nope', True)
  settings.must_be('moe_layer_freq', 1)
  settings.must_be('moe_router_activation_func', 'sigmoid')
  settings.must_be('num_nextn_predict_layers', 0)
  settings.must_be('use_grouped_topk', True)
  features = settings.size('hidden_size', 2304)
  hidden = settings.size('intermediate_size', 9216)
  epsilon = settings.positive('rms_norm_eps', 1e-5)
  depth = settings.size('num_hidden_layers', 27)
  kda, layers = _linear(settings, depth)
  dense = _dense(settings, depth)
  width = settings.size('moe_intermediate_size', 1024)
  return ModelConfig(
      num_layers=depth, features=features, norm_epsilon=epsilon,
      vocab_size=settings.size('vocab_size', 163_840), mlp='swiglu',
      mlp_factor=tables.ratio(width, features), use_bias=False,
      experts=_experts(settings, width), layer_options=dict(
          kda=kda | dict(norm_epsilon=epsilon),
          latent_attention=_attention(settings),
      ),
      **tables.with_dense(layers, dense, tables.ratio(hidden, features)),
  )


def _linear(
    settings: Settings, depth: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Returns the options of KDA, and the layers of all blocks.

  Released files have both in a part of their own, which counts blocks from 1.
  """
  part = settings.take('linear_attn_config', {})
  inner = Settings(part, where='config.json: linear_attn_config')
  size = inner.size('head_dim', settings.size('linear_head_dim', 128))
  options = dict(
      num_heads=inner.size('num_heads', settings.size('linear_num_heads', 32)),
      key_features=size, value_features=size, conv_kernel=inner.size(
          'short_conv_kernel_size', settings.size('linear_conv_kernel_dim', 4)
      ),
  )
  inner.no_effect('kda_layers')  # All the others.
  full = inner.indices('full_attn_layers', tuple(range(5, depth + 1, 4)))
  inner.finish()
  kinds = tuple(
      'full_attention' if i in full else 'linear_attention'
      for i in range(1, depth + 1)
  )
  return options, settings.layers('layer_types', kinds, depth, _LAYERS)


def _dense(settings: Settings, depth: int) -> set[int]:
  """Returns the depths of blocks that have an MLP in place of experts."""
  first = settings.take('first_k_dense_replace', 1)
  kinds = settings.layers(
      'mlp_layer_types',
      tuple('dense' if i < first else 'sparse' for i in range(depth)), depth,
      dict(dense='dense', sparse='sparse'),
  )
  return {i for i, kind in enumerate(kinds) if kind == 'dense'}


def _experts(settings: Settings, width: int) -> dict[str, Any]:
  """Returns the options of experts with `width` hidden features."""
  return dict(
      num_experts=settings.size('num_experts', 256),
      experts_per_token=settings.size('num_experts_per_token', 8),
      scores='sigmoid', renormalize=settings.take('moe_renormalize', True),
      scale=settings.positive('routed_scaling_factor', 2.446),
      num_groups=settings.size('num_expert_group', 1),
      top_groups=settings.size('topk_group', 1),
      shared_features=width * settings.size('num_shared_experts', 1),
  )


def _attention(settings: Settings) -> dict[str, Any]:
  """Returns the options of latent attention."""
  heads = settings.size('num_attention_heads', 32)
  settings.must_be('num_key_value_heads', heads)
  key = settings.size('qk_nope_head_dim', 128)
  shared = settings.size('qk_rope_head_dim', 64)
  settings.must_be('qk_head_dim', key + shared)
  rank = settings.take('q_lora_rank', 0)
  longest = settings.size('model_max_length', 1_048_576)
  return dict(
      num_heads=heads, latent_features=settings.size('kv_lora_rank', 512),
      key_features=key, shared_features=shared,
      value_features=settings.size('v_head_dim', 128),
      query_rank=rank or None, rotation='none', on_full='error',
      window=settings.context_size(min(longest, attention.CONTEXT)),
  )


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, stacks = model.config, tables.first_stacks(model)
  kinds = {layer: kind for kind, layer in _LAYERS.items()}
  dense = tables.dense_blocks(config)
  values: dict[str, Any] = dict(
      **tables.common_values(model),
      layer_types=[kinds[name] for name in config.layer_names],
      mlp_layer_types=[
          'dense' if i in dense else 'sparse' for i in range(config.num_layers)
      ],
      pad_token_id=None,  # By default one that a small vocabulary has not.
  )
  if dense:
    values['intermediate_size'] = tables.mlp_features(model)
  experts = tables.first_with(model, 'experts')
  if experts is not None:
    values |= _values_of_experts(experts)
  if 'kda' in stacks:
    layer = stacks['kda'].layer
    values |= dict(
        linear_num_heads=layer.num_heads, linear_head_dim=layer.key_features,
        linear_conv_kernel_dim=layer.conv_kernel,
    )
  if 'latent_attention' in stacks:
    layer = stacks['latent_attention'].layer
    values |= dict(
        num_attention_heads=layer.num_heads,
        num_key_value_heads=layer.num_heads,
        kv_lora_rank=layer.latent_features, q_lora_rank=layer.query_rank,
        qk_nope_head_dim=layer.key_features,
        qk_rope_head_dim=layer.shared_features, v_head_dim=layer.value_features,
    )
  return values


def _values_of_experts(experts: Any) -> dict[str, Any]:
  width = experts.mlp_in.shape[-1]
  return dict(
      moe_intermediate_size=width, num_experts=experts.num_experts,
      num_experts_per_token=experts.experts_per_token,
      moe_renormalize=experts.renormalize,
      routed_scaling_factor=experts.scale, num_expert_group=experts.num_groups,
      topk_group=experts.top_groups,
      num_shared_experts=experts.shared_in.kernel.shape[-1] // width,
  )


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('model.norm', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name, kind = f'model.layers.{i}', config.layer_names[i]
    rows |= {
        **block.norm(f'{name}.input_layernorm', 'norm'),
        **block.norm(f'{name}.post_attention_layernorm', 'mlp_norm'),
    }
    number = config.at_depth(i).experts.get('num_experts')
    if number:
      rows |= _moe(block, f'{name}.block_sparse_moe', number)
    else:
      rows |= block.mlp(f'{name}.mlp')
    mixer = _kda if kind == 'kda' else _latent
    rows |= mixer(block, f'{name}.self_attn', **config.layer_options[kind])
  return rows


def _moe(block: tables.Block, name: str, number: int) -> tables.Table:
  """Returns the tensors of a mixture of experts."""
  rows = {
      **block.linear(f'{name}.gate', 'experts.router'),
      f'{name}.gate.e_score_correction_bias': block.row('experts.correction'),
  }
  for part, path in _SHARED.items():
    rows |= block.linear(
        f'{name}.shared_experts.{part}_proj', f'experts.{path}'
    )
  rows |= block.experts(f'{name}.experts', number, 'w1', 'w3', 'w2')
  return rows


def _kda(
    block: tables.Block, name: str, *, num_heads: int, key_features: int,
    **unused: Any,
) -> tables.Table:
  """Returns the tensors of Kimi Delta Attention."""
  del unused
  size = num_heads * key_features
  rows = {
      f'{name}.A_log': block.row('layer.A_log', _in_four_axes),
      f'{name}.dt_bias': block.row('layer.dt_bias', tables.flat),
      **block.norm(f'{name}.o_norm', 'layer.norm'),
      **delta.separate(block, name, keys=size, values=size),
  }
  for part, path in _KDA.items():
    rows |= block.linear(f'{name}.{part}', f'layer.{path}')
  return rows


def _in_four_axes(u):
  return u[None, None, :, None]


def _latent(
    block: tables.Block, name: str, *, num_heads: int, key_features: int,
    value_features: int, query_rank: int | None, **unused: Any,
) -> tables.Table:
  """Returns the tensors of latent attention."""
  del unused
  rows = {
      f'{name}.kv_a_proj_with_mqa.weight':
          block.row('layer.latent.kernel', tables.transposed)
          + block.row('layer.shared.kernel', tables.transposed),
      **block.norm(f'{name}.kv_a_layernorm', 'layer.latent_norm'),
      **block.linear(f'{name}.o_proj', 'layer.output'),
  }
  if query_rank is None:
    rows |= block.linear(f'{name}.q_proj', 'layer.query')
  else:
    rows |= {
        **block.linear(f'{name}.q_a_proj', 'layer.query_in'),
        **block.norm(f'{name}.q_a_layernorm', 'layer.query_norm'),
        **block.linear(f'{name}.q_b_proj', 'layer.query'),
    }
  # The key and the value of each head.
  both = ()
  for head in range(num_heads):
    for path, size in dict(key=key_features, value=value_features).items():
      span = head * size, (head + 1) * size
      both += block.row(f'layer.{path}.kernel', tables.transposed_rows(*span))
  rows[f'{name}.kv_b_proj.weight'] = both
  return rows


FAMILY = Family(
    architecture='KimiLinearForCausalLM', layers=tuple(_LAYERS.values()),
    read=read, write=write, table=table,
    embedding='model.embed_tokens.weight', head='lm_head.weight',
    # What `transformers` 5.23.0 calls the MLPs of blocks without experts.
    renamed={
        r'block_sparse_moe\.(gate|up|down)_proj\.': r'mlp.\1_proj.',
    },
)
