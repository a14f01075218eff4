"""Bamba: `BambaForCausalLM` of `transformers`."""

from collections.abc import Mapping
from typing import Any

from rnnzoo import errors
from rnnzoo.convert import attention
from rnnzoo.convert import tables
from rnnzoo.convert.families import mamba2
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

_LAYERS = dict(linear_attention='mamba2', full_attention='attention')
_FRACTION = 0.5  # Of a head that is rotated, whatever old files say.


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  # Memory, and the loss of a training.
  settings.no_effect('num_logits_to_keep', 'z_loss_coefficient')
  settings.must_be('hidden_act', 'silu')
  for name in ('attention_bias', 'mlp_bias'):
    settings.must_be(name, False)
  settings.must_be('partial_rotary_factor', _FRACTION)
  features = settings.size('hidden_size', 4096)
  hidden = settings.size('intermediate_size', 14_336)
  epsilon = settings.positive('rms_norm_eps', 1e-5)
  depth = settings.size('num_hidden_layers', 32)
  options = attention.options(
      settings, features, heads=32, kv_heads=8, longest=262_144,
      fraction=_FRACTION,
  )
  settings.must_be(
      'attn_rotary_emb', int(options['head_features'] * _FRACTION)
  )
  chosen = settings.indices('attn_layer_indices', ())
  layers = settings.layers('layers_block_type', tuple(
      'full_attention' if i in chosen else 'linear_attention'
      for i in range(depth)
  ), depth, _LAYERS)
  return ModelConfig(
      layer=patterns.pattern(layers), num_layers=depth, features=features,
      vocab_size=settings.size('vocab_size', 128_000), norm_epsilon=epsilon,
      mlp='swiglu', mlp_factor=tables.ratio(hidden, features), use_bias=False,
      tie_embeddings=settings.take('tie_word_embeddings', False),
      layer_options=dict(
          mamba2=mixer(settings, features, epsilon), attention=options
      ),
  )


def mixer(
    settings: Settings, features: int, epsilon: float, *,
    inner: int | None = None,
) -> dict[str, Any]:
  """Returns the options of Mamba-2, of values that start with `mamba_`.

  Args:
    settings: The `config.json`.
    features: The number of features of the model.
    epsilon: That of the norm.
    inner: The number of channels; `mamba_expand x features` if `None`.
  """
  settings.no_effect('mamba_chunk_size', 'use_mamba_kernels')  # Speed.
  settings.must_be('mamba_proj_bias', False)
  what = 'mamba_d_ssm' if inner else 'mamba_expand x hidden_size'
  inner = inner or settings.size('mamba_expand', 2) * features
  heads = settings.size('mamba_n_heads', 128)
  width = settings.size('mamba_d_head', inner // heads)
  if heads * width != inner:
    raise errors.UserValueError(
        f'config.json: mamba_n_heads {heads} x mamba_d_head {width} must be '
        f'{what} = {inner}.'
    )
  low, high = mamba2.limits(settings)
  return dict(
      state_features=settings.size('mamba_d_state', 256),
      expansion_factor=tables.ratio(inner, features), head_features=width,
      num_groups=settings.size('mamba_n_groups', 1),
      conv_kernel=settings.size('mamba_d_conv', 4), dt_low=low, dt_high=high,
      norm_epsilon=epsilon,
      use_conv_bias=settings.take('mamba_conv_bias', True),
  )


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, stacks = model.config, tables.first_stacks(model)
  values = dict(
      **tables.common_values(model),
      intermediate_size=tables.mlp_features(model),
      attn_layer_indices=[
          i for i, name in enumerate(config.layer_names) if name == 'attention'
      ],
  )
  values |= mixers_values(stacks, config.features)
  if 'attention' in stacks:
    values |= attention.values(stacks['attention'].layer, with_fraction=True)
  return values


def mixers_values(
    stacks: Mapping[str, Any], features: int
) -> dict[str, Any]:
  """Returns the values of `config.json` for Mamba-2, which may be missing."""
  if 'mamba2' not in stacks:  # Sizes are checked, even so.
    return dict(mamba_expand=1, mamba_n_heads=1, mamba_d_head=features)
  layer = stacks['mamba2'].layer
  return mixer_values(layer) | dict(mamba_expand=mamba2.expansion(layer))


def mixer_values(layer: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for Mamba-2, but for its channels."""
  return dict(
      mamba_d_conv=layer.conv_kernel, mamba_d_head=layer.head_features,
      mamba_d_state=layer.state_features, mamba_n_groups=layer.num_groups,
      mamba_n_heads=layer.num_heads,
      mamba_conv_bias=layer.conv_bias is not None,
      time_step_limit=mamba2.limits_of(layer),
  )


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('model.final_layernorm', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name = f'model.layers.{i}'
    rows |= {
        **block.norm(f'{name}.input_layernorm', 'norm'),
        **block.norm(f'{name}.pre_ff_layernorm', 'mlp_norm'),
    }
    rows |= block.mlp(f'{name}.feed_forward')
    if config.layer_names[i] == 'attention':
      rows |= attention.rows(block, f'{name}.self_attn', attention.MAPS)
    else:
      options = config.layer_options['mamba2']
      rows |= mamba2.mixer(block, f'{name}.mamba', options)
  return rows


FAMILY = Family(
    architecture='BambaForCausalLM', layers=('mamba2', 'attention'), read=read,
    write=write, table=table, embedding='model.embed_tokens.weight',
    head='lm_head.weight',
)
