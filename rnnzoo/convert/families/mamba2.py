"""Mamba-2: `Mamba2ForCausalLM` of `transformers`, `mamba-codestral`."""

import math
from typing import Any

from rnnzoo import errors
from rnnzoo.convert import tables
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.must_be('hidden_act', 'silu', 'swish')
  settings.must_be('rms_norm', True)
  # `transformers` has one `in_proj`, with a bias of the step sizes beside
  # `dt_bias`.
  settings.must_be('use_bias', False)
  settings.no_effect(  # Initial values, speed, and what no code reads.
      'chunk_size', 'norm_before_gate', 'rescale_prenorm_residual',
      'time_step_floor', 'time_step_max', 'time_step_min', 'time_step_rank',
  )
  # As for `mamba`.
  settings.no_effect('residual_in_fp32')
  features = settings.size('hidden_size', 4096)
  heads, width = settings.size('num_heads', 128), settings.size('head_dim', 64)
  inner = int(settings.take('expand', 2.0) * features)
  if heads * width != inner:
    raise errors.UserValueError(
        f'config.json: num_heads {heads} x head_dim {width} must be expand x '
        f'hidden_size = {inner}.'
    )
  low, high = limits(settings)
  epsilon = settings.positive('layer_norm_epsilon', 1e-5)
  return ModelConfig(
      layer='mamba2', num_layers=settings.size('num_hidden_layers', 64),
      features=features, vocab_size=settings.size('vocab_size', 32_768),
      norm_epsilon=epsilon, mlp='none',
      tie_embeddings=settings.take('tie_word_embeddings', False),
      layer_options=dict(
          state_features=settings.size('state_size', 128),
          expansion_factor=tables.ratio(inner, features), head_features=width,
          num_groups=settings.size('n_groups', 8),
          conv_kernel=settings.size('conv_kernel', 4), dt_low=low,
          dt_high=high, norm_epsilon=epsilon,
          use_conv_bias=settings.take('use_conv_bias', True),
      ),
  )


def limits(settings: Settings) -> tuple[float, float | None]:
  """Returns the smallest and the largest step size of `time_step_limit`."""
  values = settings.numbers('time_step_limit', (0.0, math.inf))
  if len(values) != 2 or not 0 <= values[0] <= values[1]:
    raise errors.UserValueError(
        'config.json: time_step_limit must be two numbers in order, got '
        f'{list(values)}.'
    )
  return values[0], None if math.isinf(values[1]) else values[1]


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, layer = model.config, model.backbone.stacks[0].layer
  return dict(
      hidden_act='silu', hidden_size=config.features,
      num_hidden_layers=config.num_layers, vocab_size=config.vocab_size,
      layer_norm_epsilon=model.norm.epsilon,
      tie_word_embeddings=config.tie_embeddings,
      state_size=layer.state_features, conv_kernel=layer.conv_kernel,
      expand=expansion(layer),
      num_heads=layer.num_heads, head_dim=layer.head_features,
      n_groups=layer.num_groups, use_bias=False,
      use_conv_bias=layer.conv_bias is not None,
      time_step_limit=limits_of(layer),
  )


def expansion(layer: Any) -> int:
  """Returns the expansion factor of a layer, which has to be an integer."""
  factor, rest = divmod(layer.hidden_features, layer.in_features)
  if rest:
    raise errors.UserValueError(
        f'mamba2 needs an integer as the expansion factor, got '
        f'{layer.hidden_features} channels of {layer.in_features} features.'
    )
  return factor


def limits_of(layer: Any) -> list[float]:
  """Returns the `time_step_limit` of a layer."""
  return [layer.dt_low, math.inf if layer.dt_high is None else layer.dt_high]


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('backbone.norm_f', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name = f'backbone.layers.{i}'
    rows |= block.norm(f'{name}.norm', 'norm')
    rows |= mixer(block, f'{name}.mixer', config.layer_options)
  return rows


def mixer(
    block: tables.Block, name: str, options, layer: str = 'layer'
) -> tables.Table:
  """Returns the tensors of Mamba-2.

  Args:
    block: The block.
    name: What the names of all tensors start with.
    options: Those of the layer.
    layer: Where in the block it is.
  """
  kernel = tables.transposed
  rows = {
      # The gate and x, then B and C, then the step sizes.
      f'{name}.in_proj.weight': (
          block.row(f'{layer}.in_proj.kernel', kernel)
          + block.row(f'{layer}.bc_proj.kernel', kernel)
          + block.row(f'{layer}.dt_proj.kernel', kernel)
      ),
      f'{name}.conv1d.weight': (
          block.row(f'{layer}.conv', tables.taps)
          + block.row(f'{layer}.conv_bc', tables.taps)
      ),
      f'{name}.dt_bias': block.row(f'{layer}.dt_bias'),
      f'{name}.A_log': block.row(f'{layer}.A_log'),
      f'{name}.D': block.row(f'{layer}.D'),
      **block.linear(f'{name}.out_proj', f'{layer}.out_proj'),
  }
  if options.get('output_norm') != 'none':
    rows |= block.norm(f'{name}.norm', f'{layer}.norm')
  if options['use_conv_bias']:
    rows[f'{name}.conv1d.bias'] = (
        block.row(f'{layer}.conv_bias') + block.row(f'{layer}.conv_bc_bias')
    )
  return rows


FAMILY = Family(
    architecture='Mamba2ForCausalLM', layers=('mamba2',), read=read,
    write=write, table=table, embedding='backbone.embeddings.weight',
    head='lm_head.weight',
    renamed={r'backbone\.embedding\.': 'backbone.embeddings.'},
)
