"""Nemotron-H and Nemotron 3: `NemotronHForCausalLM` of `transformers`."""

from typing import Any

from rnnzoo.convert import attention
from rnnzoo.convert import tables
from rnnzoo.convert.families import mamba2
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

# Each block is one of these and nothing else; those of old files are letters.
_LAYERS = dict(
    linear_attention='mamba2', full_attention='attention', mlp='mlp', moe='moe'
)
_LETTERS = {
    'M': 'linear_attention', '*': 'full_attention', '-': 'mlp', 'E': 'moe'
}


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(  # Speed, initial values, and what no code reads.
      'chunk_size', 'expand', 'hidden_dropout', 'mamba_ssm_cache_dtype',
      'moe_shared_expert_overlap', 'n_shared_experts', 'num_logits_to_keep',
      'output_router_logits', 'rescale_prenorm_residual', 'sliding_window',
      'time_step_floor', 'time_step_limit', 'time_step_max', 'time_step_rank',
      'use_mamba_kernels',
      # Layers that predict further tokens.
      'mtp_hybrid_override_pattern', 'mtp_layers_block_type',
      'num_nextn_predict_layers',
  )
  settings.no_effect('residual_in_fp32')  # As for `mamba`.
  settings.must_be('mamba_hidden_act', 'silu')
  settings.must_be('mlp_hidden_act', 'relu2')
  for name in ('attention_bias', 'mamba_proj_bias', 'mlp_bias', 'use_bias'):
    settings.must_be(name, False)
  # `transformers` does not tie the head, even if it is told to.
  settings.must_be('tie_word_embeddings', False)
  features = settings.size('hidden_size', 4096)
  epsilon = settings.positive('layer_norm_epsilon', 1e-5)
  for name in ('norm_eps', 'rms_norm_eps'):  # What older files say as well.
    settings.must_be(name, epsilon)
  layers = _layers(settings)
  hidden = settings.size('intermediate_size', 21_504)
  width = settings.size('moe_intermediate_size', 7688)
  moe = dict(
      layer='mlp', mlp_factor=tables.ratio(width, features),
      experts=_experts(settings),
  )
  with_mlp = [name for name in ('mlp', 'moe') if name in layers]
  options = attention.options(
      settings, features, heads=32, kv_heads=8, longest=4096,
      head_features=settings.size('attention_head_dim', 128),
  )
  return ModelConfig(
      layer=patterns.pattern(layers), num_layers=len(layers), features=features,
      vocab_size=settings.size('vocab_size', 131_072), norm_epsilon=epsilon,
      mlp='relu2' if with_mlp else 'none', mlp_layers=','.join(with_mlp),
      mlp_factor=tables.ratio(hidden, features), use_bias=False,
      variants=dict(moe=moe) if 'moe' in layers else {}, tie_embeddings=False,
      layer_options=dict(
          mamba2=_mixer(settings, features, epsilon),
          attention=options | dict(rotary_fraction=0.0),
      ),
  )


def _layers(settings: Settings) -> tuple[str, ...]:
  """Returns what each block is, of the list or the letters."""
  letters = settings.take('hybrid_override_pattern', 'ME*-')
  default = tuple(_LETTERS.get(letter) or letter for letter in letters)
  depth = max(1, len(settings.take('layers_block_type', default)))
  settings.must_be('num_hidden_layers', depth)
  return settings.layers('layers_block_type', default, depth, _LAYERS)


def _experts(settings: Settings) -> dict[str, Any]:
  """Returns the options of experts."""
  return dict(
      num_experts=settings.size('n_routed_experts', 8),
      experts_per_token=settings.size('num_experts_per_tok', 2),
      scores='sigmoid', renormalize=settings.take('norm_topk_prob', True),
      scale=settings.positive('routed_scaling_factor', 1.0),
      num_groups=settings.size('n_group', 1),
      top_groups=settings.size('topk_group', 1),
      shared_features=settings.size(
          'moe_shared_expert_intermediate_size', 7688
      ),
      latent_features=settings.take('moe_latent_size', 0),
  )


def _mixer(settings: Settings, features: int, epsilon: float) -> dict[str, Any]:
  """Returns the options of Mamba-2."""
  width = settings.size('mamba_head_dim', 64)
  inner = settings.size('mamba_num_heads', 128) * width
  return dict(
      state_features=settings.size('ssm_state_size', 128),
      expansion_factor=tables.ratio(inner, features), head_features=width,
      num_groups=settings.size('n_groups', 8),
      conv_kernel=settings.size('conv_kernel', 4),
      dt_low=settings.positive('time_step_min', 0.001), norm_epsilon=epsilon,
      use_conv_bias=settings.take('use_conv_bias', True),
  )


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, stacks = model.config, tables.first_stacks(model)
  kinds = {layer: kind for kind, layer in _LAYERS.items()}
  values = dict(
      mlp_hidden_act='relu2', hidden_size=config.features,
      vocab_size=config.vocab_size, layers_block_type=[
          'moe' if config.at_depth(i).experts else kinds[name]
          for i, name in enumerate(config.layer_names)
      ],
      layer_norm_epsilon=model.norm.epsilon,
      tie_word_embeddings=config.tie_embeddings,
  )
  inner, experts = (tables.first_with(model, u) for u in ('mlp_in', 'experts'))
  if inner is not None:
    values['intermediate_size'] = inner.kernel.shape[-1]
  if experts is not None:
    values |= dict(
        moe_intermediate_size=experts.mlp_out.shape[-2],
        n_routed_experts=experts.num_experts,
        num_experts_per_tok=experts.experts_per_token,
        norm_topk_prob=experts.renormalize,
        routed_scaling_factor=experts.scale, n_group=experts.num_groups,
        topk_group=experts.top_groups,
        moe_shared_expert_intermediate_size=experts.shared_in.kernel.shape[-1],
        moe_latent_size=experts.latent_in.kernel.shape[-1]
        if experts.has_latent else None,
    )
  if 'mamba2' in stacks:
    layer = stacks['mamba2'].layer
    values |= dict(
        mamba_num_heads=layer.num_heads, mamba_head_dim=layer.head_features,
        ssm_state_size=layer.state_features, n_groups=layer.num_groups,
        conv_kernel=layer.conv_kernel, time_step_min=layer.dt_low,
        use_conv_bias=layer.conv_bias is not None,
    )
  if 'attention' in stacks:
    layer = stacks['attention'].layer
    values |= dict(
        num_attention_heads=layer.num_heads,
        num_key_value_heads=layer.num_kv_heads, head_dim=layer.head_features,
    )
  return values


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('backbone.norm_f', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name, kind = f'backbone.layers.{i}', config.layer_names[i]
    mixer = f'{name}.mixer'
    rows |= block.norm(f'{name}.norm', 'mlp_norm' if kind == 'mlp' else 'norm')
    experts = config.at_depth(i).experts
    if kind == 'mamba2':
      rows |= mamba2.mixer(block, mixer, config.layer_options[kind])
    elif kind == 'attention':
      rows |= attention.rows(block, mixer, attention.MAPS)
    elif experts:
      rows |= _moe(block, mixer, experts)
    else:
      rows |= block.linear(f'{mixer}.up_proj', 'mlp_in')
      rows |= block.linear(f'{mixer}.down_proj', 'mlp_out')
  return rows


def _moe(block: tables.Block, name: str, options) -> tables.Table:
  """Returns the tensors of a mixture of experts."""
  maps = {
      'gate': 'router', 'shared_experts.up_proj': 'shared_in',
      'shared_experts.down_proj': 'shared_out',
  }
  if options['latent_features']:
    maps |= dict(fc1_latent_proj='latent_in', fc2_latent_proj='latent_out')
  rows = {
      f'{name}.gate.e_score_correction_bias': block.row('experts.correction')
  }
  for part, path in maps.items():
    rows |= block.linear(f'{name}.{part}', f'experts.{path}')
  rows |= block.experts(
      f'{name}.experts', options['num_experts'], 'up_proj', 'down_proj'
  )
  return rows


FAMILY = Family(
    architecture='NemotronHForCausalLM', layers=('mamba2', 'attention', 'mlp'),
    read=read, write=write, table=table,
    embedding='backbone.embeddings.weight', head='lm_head.weight',
    unused=('mtp.',),
)
