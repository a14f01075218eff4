"""Zamba2: `Zamba2ForCausalLM` of `transformers`."""

from typing import Any

from rnnzoo import errors
from rnnzoo.convert import attention
from rnnzoo.convert import tables
from rnnzoo.convert.families import mamba2
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

_HYBRID = 'hybrid'  # Reads a shared block before Mamba-2.
_LAYERS = {'linear_attention': 'mamba2', _HYBRID: _HYBRID}
# Those of the released model of 2.7 billion parameters.
_KINDS = tuple(
    _HYBRID if i in (6, 12, 18, 24, 30, 36, 42, 47, 51) else 'linear_attention'
    for i in range(54)
)


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(  # Speed, initial values, and what no code reads.
      'attention_dropout', 'calc_logits_for_entire_prompt', 'chunk_size',
      'num_logits_to_keep', 'time_step_floor', 'time_step_max',
      'use_conv_bias', 'use_mamba_kernels', 'use_mem_eff_path',
  )
  settings.must_be('hidden_act', 'gelu')
  settings.must_be('add_bias_linear', False)
  settings.must_be('use_long_context', False)
  # `transformers` ties shared blocks only if it ties the head.
  settings.must_be('tie_word_embeddings', True)
  features = settings.size('hidden_size', 2560)
  depth = settings.size('num_hidden_layers', 54)
  kinds = settings.layers('layers_block_type', _KINDS, depth, _LAYERS)
  hybrids = [i for i, kind in enumerate(kinds) if kind == _HYBRID]
  settings.must_be('hybrid_layer_ids', hybrids)
  # The uses of several shared blocks take turns.
  blocks = min(settings.size('num_mem_blocks', 1), max(len(hybrids), 1))
  names = [*kinds]
  for n, i in enumerate(hybrids):
    names[i] = f'{_HYBRID}{n % blocks + 1}'
  return ModelConfig(
      layer=patterns.pattern(names), num_layers=depth, features=features,
      vocab_size=settings.size('vocab_size', 32_000), mlp='none',
      norm_epsilon=settings.positive('rms_norm_eps', 1e-5), use_bias=False,
      tie_embeddings=True,
      variants={
          f'{_HYBRID}{i}': dict(layer='mamba2', shared_block=i)
          for i in range(1, blocks + 1) if hybrids
      },
      shared_options=_shared(settings, features),
      layer_options=dict(mamba2=_mixer(settings, features)),
  )


def _shared(settings: Settings, features: int) -> dict[str, Any]:
  """Returns the options of shared blocks."""
  heads = settings.size('num_attention_heads', 32)
  for name, value in dict(
      attention_hidden_size=2 * features, kv_channels=features // heads,
      attention_head_dim=2 * features // heads, num_query_groups=heads,
  ).items():
    settings.must_be(name, value)
  theta, fraction = settings.rotary()
  rotates = settings.take('use_mem_rope', False)
  longest = settings.size('max_position_embeddings', 4096)
  return dict(
      num_heads=heads,
      num_kv_heads=settings.size('num_key_value_heads', heads),
      window=settings.context_size(min(longest, attention.CONTEXT)),
      on_full='error', rotary_fraction=fraction if rotates else 0.0,
      max_wavelength=theta,
      mlp_features=settings.size('intermediate_size', 4 * features),
      adapter_rank=settings.size('adapter_rank', 128),
      attention_adapters=settings.take('use_shared_attention_adapter', False),
  )


def _mixer(settings: Settings, features: int) -> dict[str, Any]:
  """Returns the options of Mamba-2."""
  factor, heads = settings.size('mamba_expand', 2), settings.size(
      'n_mamba_heads', 8
  )
  inner = factor * features
  if inner % heads:
    raise errors.UserValueError(
        f'config.json: n_mamba_heads {heads} must divide mamba_expand x '
        f'hidden_size = {inner}.'
    )
  settings.must_be('mamba_headdim', inner // heads)
  return dict(
      state_features=settings.size('mamba_d_state', 64),
      expansion_factor=factor, head_features=inner // heads,
      num_groups=settings.size('mamba_ngroups', 1),
      conv_kernel=settings.size('mamba_d_conv', 4),
      dt_low=settings.positive('time_step_min', 0.001),
      norm_epsilon=1e-5,  # Whatever that of the blocks is.
      use_conv_bias=True,
  )


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, mixer = model.config, model.backbone.stacks[0].layer
  if not model.backbone.shared:
    raise errors.UserValueError('zamba2 needs a shared block')
  shared = model.backbone.shared[0]
  layer = shared.attention
  rotary = attention.values(layer)
  return tables.common_values(model) | dict(
      hidden_act='gelu',
      layers_block_type=[
          _HYBRID if number else 'linear_attention'
          for number in _numbers(config)
      ],
      num_mem_blocks=len(model.backbone.shared),
      **rotary, use_mem_rope=layer.rotary_features > 0,
      intermediate_size=shared.mlp_in.out_features,
      adapter_rank=shared.adapter_rank,
      use_shared_attention_adapter=shared.attention_adapters,
      mamba_d_conv=mixer.conv_kernel, mamba_d_state=mixer.state_features,
      mamba_ngroups=mixer.num_groups, n_mamba_heads=mixer.num_heads,
      mamba_expand=mamba2.expansion(mixer), time_step_min=mixer.dt_low,
  )


def _numbers(config: ModelConfig) -> list[int]:
  """Returns the number of the shared block of each block, 0 for none."""
  return [config.at_depth(i).shared_block for i in range(config.num_layers)]


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('model.final_layernorm', 'norm'))
  numbers = _numbers(config)
  homes = {}  # Of shared blocks: the place that uses it first has it.
  for i, block in enumerate(tables.blocks(config)):
    name, number = f'model.layers.{i}', numbers[i]
    if number:
      rows |= block.linear(f'{name}.linear', 'use.output')
      if number not in homes:
        homes[number] = f'{name}.shared_transformer'
        shared = tables.Block(f'backbone.shared.{number - 1}', None)
        rows |= _shared_rows(shared, homes[number])
      n = sum(map(bool, numbers[:i]))
      adapters = config.shared_options['attention_adapters']
      rows |= _use_rows(block, homes[number], n, adapters)
      name = f'{name}.mamba_decoder'
    options = config.layer_options['mamba2']
    rows |= block.norm(f'{name}.input_layernorm', 'norm')
    rows |= mamba2.mixer(block, f'{name}.mamba', options)
  return rows


def _shared_rows(shared: tables.Block, name: str) -> tables.Table:
  """Returns the tensors of a shared block."""
  gate, inner = (
      shared.row(f'mlp_{part}.kernel', tables.transposed)
      for part in ('gate', 'in')
  )
  return {
      **shared.norm(f'{name}.input_layernorm', 'norm'),
      **shared.norm(f'{name}.pre_ff_layernorm', 'mlp_norm'),
      **attention.rows(
          shared, f'{name}.self_attn', attention.MAPS, layer='attention'
      ),
      f'{name}.feed_forward.gate_up_proj.weight': gate + inner,
      **shared.linear(f'{name}.feed_forward.down_proj', 'mlp_out'),
  }


def _use_rows(
    block: tables.Block, name: str, n: int, attention_adapters: bool
) -> tables.Table:
  """Returns the adapters of the `n`-th use of all shared blocks."""
  adapters = {'feed_forward.gate_up_proj_adapter_list': 'mlp'}
  if attention_adapters:
    adapters |= {
        f'self_attn.linear_{part[0]}_adapter_list': f'attention.{part}'
        for part in ('query', 'key', 'value')
    }
  rows = {}
  for part, path in adapters.items():
    for i, side in enumerate(('down', 'up')):
      rows |= block.linear(f'{name}.{part}.{n}.{i}', f'use.{path}.{side}')
  return rows


FAMILY = Family(
    architecture='Zamba2ForCausalLM', layers=('mamba2',), read=read,
    write=write, table=table, embedding='model.embed_tokens.weight',
    head='lm_head.weight',
)
