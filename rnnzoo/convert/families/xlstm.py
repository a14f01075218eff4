"""xLSTM-7B: `xLSTMForCausalLM` of `transformers`, `NX-AI/xLSTM-7b`."""

from typing import Any

from rnnzoo.convert import tables
from rnnzoo.convert.families.family import Family
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect(  # How kernels compute, and in which chunks.
      'add_forward_backend_padding', 'autocast_kernel_dtype', 'chunk_size',
      'chunkwise_kernel', 'inference_state_dtype', 'max_inference_chunksize',
      'mlstm_round_up_to_multiple_of', 'mode',
      'norm_reduction_force_float32', 'return_last_states', 'sequence_kernel',
      'step_kernel',
  )
  # Initial values, what sizes say as well, and a matter of the tokenizer.
  settings.no_effect(
      'force_bos_token_insert', 'head_dim', 'igate_bias_init_range'
  )
  for name in ('add_embedding_dropout', 'add_post_norm', 'add_qk_norm'):
    settings.must_be(name, False)
  settings.must_be('add_post_blocks_norm', True)
  settings.must_be('add_out_norm', True)
  settings.must_be('tie_word_embeddings', False)  # There it ties nothing.
  settings.must_be('weight_mode', 'single')
  settings.must_be('use_bias', False)  # Norms would have one, too.
  features = settings.size('hidden_size', settings.size('embedding_dim', 4096))
  settings.must_be('embedding_dim', features)
  depth = settings.size('num_hidden_layers', settings.size('num_blocks', 32))
  settings.must_be('num_blocks', depth)
  epsilon = settings.positive('norm_eps', 1e-6)
  settings.must_be('cell_norm_eps', epsilon)
  return ModelConfig(
      layer='mlstm_large', num_layers=depth, features=features,
      vocab_size=settings.size('vocab_size', 50_304), norm_epsilon=epsilon,
      mlp='swiglu', mlp_factor=settings.positive('ffn_proj_factor', 2.667),
      mlp_multiple=settings.size('ffn_round_up_to_multiple_of', 64),
      use_bias=False, soft_cap=settings.positive('output_logit_soft_cap', 30.0),
      layer_options=dict(
          num_heads=settings.size('num_heads', 8),
          key_factor=settings.positive('qk_dim_factor', 0.5),
          value_factor=settings.positive('v_dim_factor', 1.0),
          gate_soft_cap=settings.positive('gate_soft_cap', 15.0),
          norm_epsilon=epsilon, epsilon=settings.positive('eps', 1e-6),
      ),
  )


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  config, block = model.config, model.backbone.stacks[0]
  layer, features = block.layer, config.features
  return dict(
      hidden_size=features, embedding_dim=features,
      num_hidden_layers=config.num_layers, num_blocks=config.num_layers,
      vocab_size=config.vocab_size, norm_eps=model.norm.epsilon,
      ffn_proj_factor=config.mlp_factor,
      ffn_round_up_to_multiple_of=config.mlp_multiple,
      output_logit_soft_cap=config.soft_cap, num_heads=layer.num_heads,
      qk_dim_factor=tables.ratio(layer.key_features, features),
      v_dim_factor=tables.ratio(layer.hidden_features, features),
      gate_soft_cap=layer.gate_soft_cap, eps=layer.epsilon, use_bias=False,
      weight_mode='single', add_out_norm=True,
  )


def table(config: ModelConfig) -> tables.Table:
  """Returns the tensors of blocks and norms."""
  rows = dict(tables.whole_norm('backbone.out_norm', 'norm'))
  for i, block in enumerate(tables.blocks(config)):
    name = f'backbone.blocks.{i}'
    layer, mlp = f'{name}.mlstm_layer', f'{name}.ffn'
    rows |= {
        **block.norm(f'{name}.norm_mlstm', 'norm'),
        **block.linear(f'{layer}.q', 'layer.query'),
        **block.linear(f'{layer}.k', 'layer.key'),
        **block.linear(f'{layer}.v', 'layer.value'),
        **block.linear(f'{layer}.ogate_preact', 'layer.output_gate'),
        **block.norm(f'{layer}.multihead_norm', 'layer.norm'),
        **block.linear(f'{layer}.out_proj', 'layer.output'),
        **block.norm(f'{name}.norm_ffn', 'mlp_norm'),
        **block.linear(f'{mlp}.proj_up_gate', 'mlp_gate'),
        **block.linear(f'{mlp}.proj_up', 'mlp_in'),
        **block.linear(f'{mlp}.proj_down', 'mlp_out'),
    }
    for gate, kernel, bias in (
        ('igate', _input_kernel, _input_bias),
        ('fgate', _forget_kernel, _forget_bias),
    ):
      rows |= {
          f'{layer}.{gate}_preact.weight': block.row(
              'layer.gates.kernel', kernel
          ),
          f'{layer}.{gate}_preact.bias': block.row('layer.gates.bias', bias),
      }
  return rows


# Both gates are one map `[D] -> [2, heads]` here.
def _input_kernel(u):
  return u[:, 0].T


def _forget_kernel(u):
  return u[:, 1].T


def _input_bias(u):
  return u[0]


def _forget_bias(u):
  return u[1]


FAMILY = Family(
    architecture='xLSTMForCausalLM', layers=('mlstm_large',), read=read,
    write=write, table=table, embedding='backbone.embeddings.weight',
    head='lm_head.weight',
)
