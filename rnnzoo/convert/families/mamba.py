"""Mamba: `MambaForCausalLM` of `transformers`, `state-spaces/mamba-*-hf`."""

from typing import Any, Literal

from rnnzoo.convert import tables
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  # What the files of the authors say of their own code.
  settings.no_effect(
      'd_inner', 'd_model', 'fused_add_norm', 'n_layer',
      'pad_vocab_size_multiple',
  )
  settings.must_be('rms_norm', True)
  settings.must_be('ssm_cfg', {})
  return read_common(settings)


def read_common(
    settings: Settings,
    selection_norm: Literal['none', 'plain'] = 'none',
    epsilon: float = 1e-6,
) -> ModelConfig:
  """Returns the config of a model of `Mamba`.

  Args:
    settings: The file's values.
    selection_norm: See `layers.Mamba`.
    epsilon: Its `selection_norm_epsilon`.
  """
  settings.must_be('hidden_act', 'silu', 'swish')
  settings.no_effect(  # Initial values, and kernels.
      'rescale_prenorm_residual', 'time_step_floor', 'time_step_init_scheme',
      'time_step_max', 'time_step_min', 'time_step_scale',
      'use_associative_scan', 'use_mambapy',
  )
  # Sums are float32 in a float32 model; in a bfloat16 model ours are bfloat16.
  settings.no_effect('residual_in_fp32')
  features = settings.size('hidden_size', 768)
  expand = settings.take('expand', 2.0)
  inner = settings.size('intermediate_size', int(expand * features))
  return ModelConfig(
      layer='mamba', num_layers=settings.size('num_hidden_layers', 32),
      features=features, vocab_size=settings.size('vocab_size', 50_280),
      norm_epsilon=settings.positive('layer_norm_epsilon', 1e-5), mlp='none',
      tie_embeddings=settings.take('tie_word_embeddings', True),
      layer_options=dict(
          state_features=settings.size('state_size', 16),
          expansion_factor=tables.ratio(inner, features),
          conv_kernel=settings.size('conv_kernel', 4),
          dt_rank=settings.size('time_step_rank', -(-features // 16)),
          use_bias=settings.take('use_bias', False),
          use_conv_bias=settings.take('use_conv_bias', True),
          selection_norm=selection_norm, selection_norm_epsilon=epsilon,
      ),
  )


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, layer = model.config, model.backbone.stacks[0].layer
  return dict(
      hidden_act='silu', hidden_size=config.features,
      num_hidden_layers=config.num_layers, vocab_size=config.vocab_size,
      layer_norm_epsilon=model.norm.epsilon,
      tie_word_embeddings=config.tie_embeddings,
      state_size=layer.state_features, conv_kernel=layer.conv_kernel,
      # An integer; where it is not, the next value decides.
      expand=max(1, layer.hidden_features // layer.in_features),
      intermediate_size=layer.hidden_features, time_step_rank=layer.dt_rank,
      use_bias=layer.in_proj.bias is not None,
      use_conv_bias=layer.conv_bias is not None,
  )


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('backbone.norm_f', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name = f'backbone.layers.{i}'
    rows |= block.norm(f'{name}.norm', 'norm')
    rows |= mixer(block, f'{name}.mixer', config.layer_options)
  return rows


def mixer(block: tables.Block, name: str, options) -> tables.Table:
  """Returns the tensors of the layer of a block."""
  use_bias = options['use_bias']
  rows = {
      # Its rows are those of x, then those of the gate.
      **block.linear(f'{name}.in_proj', 'layer.in_proj', bias=use_bias),
      f'{name}.conv1d.weight': block.row('layer.conv', tables.taps),
      **block.linear(f'{name}.x_proj', 'layer.x_proj'),
      **block.linear(f'{name}.dt_proj', 'layer.dt_proj'),
      f'{name}.dt_proj.bias': block.row('layer.dt_bias'),
      f'{name}.A_log': block.row('layer.A_log'),
      f'{name}.D': block.row('layer.D'),
      **block.linear(f'{name}.out_proj', 'layer.out_proj', bias=use_bias),
  }
  if options['use_conv_bias']:
    rows[f'{name}.conv1d.bias'] = block.row('layer.conv_bias')
  return rows


FAMILY = Family(
    architecture='MambaForCausalLM', layers=('mamba',), read=read,
    write=write, table=table, embedding='backbone.embeddings.weight',
    head='lm_head.weight',
    renamed={r'backbone\.embedding\.': 'backbone.embeddings.'},
)
