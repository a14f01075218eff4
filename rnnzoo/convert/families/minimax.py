"""MiniMax-01: `MiniMaxForCausalLM` of `transformers`, `MiniMax-Text-01-hf`."""

from typing import Any

from rnnzoo.convert import attention
from rnnzoo.convert import tables
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

_LAYERS = dict(
    linear_attention='lightning_attention', full_attention='attention'
)
# What the names of factors start with: of both layers, and of MLPs.
_LINEAR, _FULL, _MLP = 'linear_attn', 'full_attn', 'mlp'


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(  # Speed, and what belongs to a training.
      'block_size', 'output_router_logits', 'router_aux_loss_coef',
      'router_jitter_noise',
  )
  settings.must_be('hidden_act', 'silu')
  settings.must_be('sliding_window', None)
  features = settings.size('hidden_size', 4096)
  hidden = settings.size('intermediate_size', 14_336)
  epsilon = settings.positive('rms_norm_eps', 1e-5)
  depth = settings.size('num_hidden_layers', 32)
  layers = settings.layers('layer_types', tuple(
      'linear_attention' if i % 2 else 'full_attention' for i in range(depth)
  ), depth, _LAYERS)
  heads = settings.size('num_attention_heads', 32)
  options = attention.options(
      settings, features, heads=heads, kv_heads=8,
      head_features=features // heads, longest=131_072, theta=1e6,
  )
  full = dict(attention=dict(layer_scales=_factors(settings, _FULL)))
  return ModelConfig(
      layer=patterns.pattern(layers), num_layers=depth, features=features,
      variants=full if 'attention' in layers else {},
      vocab_size=settings.size('vocab_size', 32_000), norm_epsilon=epsilon,
      norm_position='both', layer_scales=_factors(settings, _LINEAR),
      mlp_scales=_factors(settings, _MLP), mlp='swiglu',
      mlp_factor=tables.ratio(hidden, features), use_bias=False,
      experts=dict(
          num_experts=settings.size('num_local_experts', 8),
          experts_per_token=settings.size('num_experts_per_tok', 2),
      ),
      tie_embeddings=settings.take('tie_word_embeddings', False),
      layer_options=dict(
          lightning_attention=dict(
              num_heads=heads, head_features=options['head_features']
          ),
          attention=options,
      ),
  )


def _factors(settings: Settings, name: str) -> tuple[float, float]:
  """Returns the factors of a sum: of what there was, and of what is new."""
  alpha, beta = (
      settings.take(f'{name}_{part}_factor', 1.0) for part in ('alpha', 'beta')
  )
  return float(alpha), float(beta)


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, stacks = model.config, tables.first_stacks(model)
  kinds = {layer: kind for kind, layer in _LAYERS.items()}
  experts = tables.first_with(model, 'experts')
  values = dict(
      **tables.common_values(model),
      layer_types=[kinds[name] for name in config.layer_names],
      intermediate_size=experts.mlp_in.shape[-1],
      num_local_experts=experts.num_experts,
      num_experts_per_tok=experts.experts_per_token,
      **_factor_values(_MLP, model.backbone.stacks[0].config.mlp_scales),
  )
  if 'lightning_attention' in stacks:
    stack = stacks['lightning_attention']
    values |= dict(
        num_attention_heads=stack.layer.num_heads,
        head_dim=stack.layer.key_features,
        **_factor_values(_LINEAR, stack.config.layer_scales),
    )
  if 'attention' in stacks:
    stack = stacks['attention']
    values |= attention.values(stack.layer)
    values |= dict(
        head_dim=stack.layer.head_features,
        **_factor_values(_FULL, stack.config.layer_scales),
    )
  return values


def _factor_values(name: str, scales: tuple[float, ...]) -> dict[str, float]:
  return {
      f'{name}_{part}_factor': scale
      for part, scale in zip(('alpha', 'beta'), scales)
  }


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('model.norm', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name = f'model.layers.{i}'
    layer, part = f'{name}.self_attn', f'{name}.block_sparse_moe'
    rows |= {
        **block.norm(f'{name}.input_layernorm', 'norm'),
        **block.norm(f'{name}.post_attention_layernorm', 'mlp_norm'),
        **block.linear(f'{part}.gate', 'experts.router'),
        **block.experts(
            f'{part}.experts', config.experts['num_experts'], 'w1', 'w3', 'w2'
        ),
    }
    if config.layer_names[i] == 'attention':
      rows |= attention.rows(block, layer, attention.MAPS)
    else:
      options = config.layer_options['lightning_attention']
      rows |= {
          **block.linear(f'{layer}.output_gate', 'layer.gate'),
          **block.norm(f'{layer}.norm', 'layer.norm'),
          **block.linear(f'{layer}.out_proj', 'layer.output'),
          f'{layer}.qkv_proj.weight': _queries(block, **options),
      }
  return rows


def _queries(
    block: tables.Block, *, num_heads: int, head_features: int
) -> tables.Row:
  """Returns a matrix that has query, key and value of each head."""
  row = ()
  for head in range(num_heads):
    view = tables.transposed_rows(
        head * head_features, (head + 1) * head_features
    )
    for path in ('query', 'key', 'value'):
      row += block.row(f'layer.{path}.kernel', view)
  return row


FAMILY = Family(
    architecture='MiniMaxForCausalLM',
    layers=('lightning_attention', 'attention'), read=read, write=write,
    table=table, embedding='model.embed_tokens.weight', head='lm_head.weight',
    # Powers of the rates of decay.
    derived=('slope_rate', 'query_decay', 'key_decay', 'diagonal_decay'),
)
