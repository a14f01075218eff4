"""RecurrentGemma: `RecurrentGemmaForCausalLM` of `transformers`."""

import math
from typing import Any

import ml_dtypes
from rnnzoo import errors
from rnnzoo.convert import tables
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig

_LAYERS = dict(recurrent='griffin', attention='attention')


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(  # Initial values, and a limit that nothing needs.
      'attention_dropout', 'final_w_init_variance_scale', 'max_seq_len',
      'w_init_variance_scale',
  )
  settings.must_be('hidden_activation', 'gelu_pytorch_tanh')
  settings.must_be('embeddings_scale_by_sqrt_dim', True)
  features = settings.size('hidden_size', 2560)
  heads = settings.size('num_attention_heads', 10)
  settings.must_be('head_dim', features // heads)
  kinds = settings.take('block_types', ('recurrent', 'recurrent', 'attention'))
  settings.must_be('_block_types', list(kinds))
  for kind in kinds:
    if kind not in _LAYERS:
      raise errors.UserValueError(
          f'config.json: block_types must be {" and ".join(_LAYERS)}, got '
          f'{kind!r}.'
      )
  # The file counts the features of both halves.
  hidden = settings.size('intermediate_size', 7680) // 2
  theta, fraction = settings.rotary(0.5)
  return ModelConfig(
      layer=','.join(_LAYERS[kind] for kind in kinds),
      num_layers=settings.size('num_hidden_layers', 26), features=features,
      vocab_size=settings.size('vocab_size', 256_000), norm='rms1',
      norm_epsilon=settings.positive('rms_norm_eps', 1e-6), mlp='geglu',
      mlp_factor=tables.ratio(hidden, features),
      tie_embeddings=settings.take('tie_word_embeddings', True),
      embed_scale=_embed_scale(features),
      soft_cap=settings.positive('logits_soft_cap', 30.0),
      layer_options=dict(
          griffin=dict(
              hidden_features=settings.size('lru_width', features),
              num_heads=heads, conv_kernel=settings.size('conv1d_width', 4),
              initialization='recurrentgemma',
          ),
          attention=dict(
              num_heads=heads, head_features=features // heads,
              num_kv_heads=settings.size('num_key_value_heads', heads),
              window=settings.size('attention_window_size', 2048),
              rotary_fraction=fraction, max_wavelength=theta,
              use_bias=settings.take('attention_bias', False),
              use_output_bias=True,
          ),
      ),
  )


def _embed_scale(features: int) -> float:
  """The root of the features, which `transformers` rounds to bfloat16."""
  return float(ml_dtypes.bfloat16(math.sqrt(features)))


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, stacks = model.config, model.backbone.stacks
  kinds = {layer: kind for kind, layer in _LAYERS.items()}
  values = dict(
      block_types=[
          kinds[name] for name in config.layer_names[: len(stacks)]
      ],
      hidden_activation='gelu_pytorch_tanh', hidden_size=config.features,
      intermediate_size=2 * stacks[0].mlp_in.kernel.shape[-1],
      num_hidden_layers=config.num_layers, vocab_size=config.vocab_size,
      rms_norm_eps=model.norm.epsilon, logits_soft_cap=config.soft_cap,
      tie_word_embeddings=config.tie_embeddings,
  )
  for name, stack in zip(config.layer_names, stacks):
    layer = stack.layer
    if name == 'griffin':
      values |= dict(
          lru_width=layer.hidden_features,
          conv1d_width=layer.conv_kernel.shape[-2],
          num_attention_heads=layer.recurrent.num_heads,
      )
    else:
      values |= dict(
          num_attention_heads=layer.num_heads, head_dim=layer.head_features,
          num_key_value_heads=layer.num_kv_heads,
          attention_window_size=layer.window,
          attention_bias=layer.query.bias is not None,
          rope_parameters=dict(
              rope_type='default', rope_theta=layer.max_wavelength,
              partial_rotary_factor=(
                  layer.rotary_features / layer.head_features
              ),
          ),
      )
  return values


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('model.final_norm', 'norm'))
  bias = config.layer_options['attention']['use_bias']
  for i, block in enumerate(tables.blocks(config)):
    name = f'model.layers.{i}'
    rows |= {
        **block.norm(f'{name}.temporal_pre_norm', 'norm'),
        **block.norm(f'{name}.channel_pre_norm', 'mlp_norm'),
    }
    rows |= block.mlp(f'{name}.mlp_block', bias=True)
    layer = f'{name}.temporal_block'
    if config.layer_names[i] == 'griffin':
      rows |= _recurrent(block, layer)
    else:
      for part, path in dict(q='query', k='key', v='value').items():
        rows |= block.linear(f'{layer}.{part}_proj', f'layer.{path}', bias=bias)
      rows |= block.linear(f'{layer}.o_proj', 'layer.output', bias=True)
  return rows


def _recurrent(block: tables.Block, name: str) -> tables.Table:
  """Returns the tensors of a recurrent block."""
  unit, lru = 'layer.recurrent', f'{name}.rg_lru'
  rows = {
      f'{name}.conv_1d.weight': block.row('layer.conv_kernel', tables.taps),
      f'{name}.conv_1d.bias': block.row('layer.conv_bias'),
      f'{lru}.recurrent_param': block.row(f'{unit}.a_param'),
      # Matrices of blocks `[G, in, out]`, as here.
      f'{lru}.recurrent_gate_weight': block.row(f'{unit}.W_a'),
      f'{lru}.recurrent_gate_bias': block.row(f'{unit}.b_a'),
      f'{lru}.input_gate_weight': block.row(f'{unit}.W_x'),
      f'{lru}.input_gate_bias': block.row(f'{unit}.b_x'),
  }
  for part in ('linear_x', 'linear_y', 'linear_out'):
    rows |= block.linear(f'{name}.{part}', f'layer.{part}', bias=True)
  return rows


FAMILY = Family(
    architecture='RecurrentGemmaForCausalLM', layers=('griffin', 'attention'),
    read=read, write=write, table=table,
    embedding='model.embed_tokens.weight', head='lm_head.weight',
)
