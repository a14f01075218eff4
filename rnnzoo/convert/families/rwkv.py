"""RWKV-4: `RwkvForCausalLM` of `transformers`, `RWKV/rwkv-4-*-pile`.

A layer there is two blocks here: time mix and channel mix.
"""

from typing import Any

from rnnzoo.convert import tables
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig

_FINAL_EPSILON = 1e-5  # `transformers` reads none for the last norm.


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  # The length that one of their kernels was compiled for. `rescale_every`
  # halves weights and activations alike, against overflow in float16.
  settings.no_effect('context_length', 'rescale_every')
  features = settings.size('hidden_size', 4096)
  settings.must_be('attention_hidden_size', features)
  hidden = settings.size('intermediate_size', 4 * features)
  return ModelConfig(
      layer='rwkv4,rwkv4_channel_mix',
      num_layers=2 * settings.size('num_hidden_layers', 32),
      features=features, vocab_size=settings.size('vocab_size', 50_277),
      norm='layer', norm_epsilon=settings.positive('layer_norm_epsilon', 1e-5),
      final_norm_epsilon=_FINAL_EPSILON, mlp='none', embed_norm=True,
      tie_embeddings=settings.take('tie_word_embeddings', False),
      layer_options=dict(rwkv4_channel_mix=dict(
          expansion_factor=tables.ratio(hidden, features)
      )),
  )


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config = model.config
  channel_mix = model.backbone.stacks[-1].layer
  return dict(
      hidden_size=config.features, vocab_size=config.vocab_size,
      attention_hidden_size=config.features,
      num_hidden_layers=config.num_layers // 2,
      intermediate_size=channel_mix.hidden_features,
      layer_norm_epsilon=model.backbone.stacks[0].norm.epsilon,
      tie_word_embeddings=config.tie_embeddings,
  )


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = {
      **tables.whole_norm('rwkv.ln_out', 'norm', bias=True),
      **tables.whole_norm('rwkv.blocks.0.pre_ln', 'embed_norm', bias=True),
  }
  blocks = tables.blocks(config)
  for i, (time, channel) in enumerate(zip(blocks[::2], blocks[1::2])):
    name = f'rwkv.blocks.{i}'
    mix, mlp = f'{name}.attention', f'{name}.feed_forward'
    rows |= {
        **time.norm(f'{name}.ln1', 'norm', bias=True),
        f'{mix}.time_decay': time.row('layer.time_decay'),
        f'{mix}.time_first': time.row('layer.time_first'),
        f'{mix}.time_mix_key': time.row('layer.mu_k', _shift),
        f'{mix}.time_mix_value': time.row('layer.mu_v', _shift),
        f'{mix}.time_mix_receptance': time.row('layer.mu_r', _shift),
        **channel.norm(f'{name}.ln2', 'norm', bias=True),
        f'{mlp}.time_mix_key': channel.row('layer.mu_k', _shift),
        f'{mlp}.time_mix_receptance': channel.row('layer.mu_r', _shift),
    }
    for part in ('key', 'value', 'receptance', 'output'):
      rows |= time.linear(f'{mix}.{part}', f'layer.{part}')
    for part in ('key', 'value', 'receptance'):
      rows |= channel.linear(f'{mlp}.{part}', f'layer.{part}')
  return rows


def _shift(u):
  """A vector `[D]` as `[1, 1, D]`."""
  return u[None, None]


FAMILY = Family(
    architecture='RwkvForCausalLM', layers=('rwkv4', 'rwkv4_channel_mix'),
    read=read, write=write, table=table, embedding='rwkv.embeddings.weight',
    head='head.weight',
)
