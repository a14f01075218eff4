r"""Tiny models of `transformers`, with random weights.

It needs PyTorch and `transformers`, and makes the files of `fixtures`:

  python -m tests.convert.reference [FAMILY ...]
"""

import functools
import pathlib
import re
import sys

import numpy as np
from rnnzoo import convert

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
VOCABULARY = 97
# What a model of a family is built with, apart from the vocabulary.
SIZES = dict(
    mamba=dict(
        hidden_size=48, state_size=8, num_hidden_layers=3, time_step_rank=5
    ),
    falcon_mamba=dict(
        hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=3
    ),
    mamba2=dict(
        hidden_size=32, num_heads=8, head_dim=8, n_groups=2, state_size=6,
        num_hidden_layers=2, chunk_size=8,
    ),
    rwkv=dict(hidden_size=32, num_hidden_layers=3, intermediate_size=56),
    xlstm=dict(
        hidden_size=64, num_hidden_layers=2, num_heads=4, qk_dim_factor=1.0,
        ffn_proj_factor=1.3, ffn_round_up_to_multiple_of=16,
    ),
    # The root of 48 is no bfloat16. A prompt is longer than the window.
    recurrent_gemma=dict(
        hidden_size=48, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=1, attention_window_size=8,
        lru_width=64,
    ),
    lfm2=dict(
        hidden_size=32, intermediate_size=56, block_auto_adjust_ff_dim=False,
        num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
        layer_types=['conv', 'conv', 'full_attention', 'conv', 'conv'],
    ),
    bamba=dict(
        hidden_size=32, intermediate_size=56, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, mamba_n_heads=8,
        mamba_n_groups=2, mamba_d_state=6, mamba_chunk_size=8,
        attn_layer_indices=[1, 3],
    ),
    # No two multipliers are alike.
    falcon_h1=dict(
        hidden_size=32, intermediate_size=56, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        mamba_d_ssm=48, mamba_n_heads=6, mamba_n_groups=2, mamba_d_state=5,
        mamba_chunk_size=8, embedding_multiplier=3.5, lm_head_multiplier=0.7,
        mlp_multipliers=[0.75, 0.625], key_multiplier=0.4,
        ssm_in_multiplier=1.25, ssm_out_multiplier=0.9,
        ssm_multipliers=[0.5, 1.25, 0.75, 1.125, 0.375],
        attention_in_multiplier=1.2, attention_out_multiplier=0.75,
    ),
    # Three choose among two of the four groups.
    nemotron_h=dict(
        hidden_size=32, intermediate_size=56, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, mamba_num_heads=6,
        mamba_head_dim=8, n_groups=2, ssm_state_size=5, chunk_size=8,
        n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
        moe_intermediate_size=20, moe_shared_expert_intermediate_size=28,
        routed_scaling_factor=2.5, layers_block_type=[
            'linear_attention', 'mlp', 'linear_attention', 'full_attention',
            'moe', 'linear_attention', 'moe',
        ],
    ),
    # Values are wider than keys.
    olmo_hybrid=dict(
        hidden_size=32, intermediate_size=56, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, linear_key_head_dim=6,
        linear_value_head_dim=10, rope_theta=None, pad_token_id=0,
        eos_token_id=1, layer_types=[
            'linear_attention', 'full_attention', 'linear_attention',
            'linear_attention', 'full_attention',
        ],
    ),
    # Blocks with and without experts; sizes of heads that all differ.
    kimi_linear=dict(
        hidden_size=32, intermediate_size=40, moe_intermediate_size=16,
        num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=4,
        kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=10,
        linear_head_dim=8, linear_num_heads=3, num_experts=6,
        num_experts_per_token=2, pad_token_id=0, bos_token_id=0,
        eos_token_id=1, layer_types=[
            'linear_attention', 'full_attention', 'linear_attention',
            'linear_attention', 'full_attention',
        ],
    ),
    # Two heads of values share one of keys; half of a head is rotated.
    qwen3_5_text=dict(
        hidden_size=32, intermediate_size=56, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=6,
        linear_value_head_dim=10, partial_rotary_factor=0.5, layer_types=[
            'linear_attention', 'full_attention', 'linear_attention',
            'linear_attention', 'full_attention',
        ],
    ),
    # Both kinds of layers have experts, and one an MLP too.
    qwen3_next=dict(
        hidden_size=32, intermediate_size=56, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=6,
        linear_value_head_dim=10, partial_rotary_factor=0.5, num_experts=6,
        num_experts_per_tok=3, moe_intermediate_size=20,
        shared_expert_intermediate_size=12, mlp_only_layers=[0], layer_types=[
            'linear_attention', 'full_attention', 'linear_attention',
            'linear_attention', 'full_attention',
        ],
    ),
    granitemoehybrid=dict(
        hidden_size=32, intermediate_size=16, shared_intermediate_size=24,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=5, num_experts_per_tok=3, mamba_n_heads=8,
        mamba_n_groups=2, mamba_d_state=6, mamba_chunk_size=8,
        embedding_multiplier=12.0, logits_scaling=6.0, residual_multiplier=0.22,
        attention_multiplier=0.4, position_embedding_type='nope', layer_types=[
            'linear_attention', 'full_attention', 'linear_attention',
            'linear_attention',
        ],
    ),
    jamba=dict(
        hidden_size=32, intermediate_size=24, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=3, expert_layer_period=2, expert_layer_offset=1,
        attn_layer_period=3, attn_layer_offset=1, mamba_d_state=6,
        mamba_dt_rank=3, pad_token_id=None,
    ),
    minimax=dict(
        hidden_size=32, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=10,
        num_local_experts=4, num_experts_per_tok=2, block_size=4,
        full_attn_alpha_factor=1.5, full_attn_beta_factor=0.7,
        linear_attn_alpha_factor=0.8, linear_attn_beta_factor=1.2,
        mlp_alpha_factor=1.1, mlp_beta_factor=0.9, layer_types=[
            'linear_attention', 'full_attention', 'linear_attention',
            'linear_attention',
        ],
    ),
    # Two shared blocks, of which the first is used twice.
    zamba2=dict(
        hidden_size=32, intermediate_size=40, num_hidden_layers=5,
        num_attention_heads=4, n_mamba_heads=8, mamba_ngroups=2,
        mamba_d_state=6, chunk_size=8, num_mem_blocks=2, adapter_rank=3,
        use_shared_attention_adapter=True, use_mem_rope=True,
        layers_block_type=[
            'linear_attention', 'hybrid', 'hybrid', 'linear_attention', 'hybrid'
        ],
    ),
)
# Sizes of the committed files, a few kilobytes each.
SMALL = dict(
    mamba=dict(hidden_size=8, state_size=3, num_hidden_layers=2),
    falcon_mamba=dict(hidden_size=8, state_size=3, num_hidden_layers=2),
    mamba2=dict(
        hidden_size=8, num_heads=4, head_dim=4, n_groups=2, state_size=3,
        num_hidden_layers=2,
    ),
    rwkv=dict(hidden_size=8, num_hidden_layers=2, intermediate_size=12),
    xlstm=dict(
        hidden_size=8, num_hidden_layers=2, num_heads=2,
        ffn_round_up_to_multiple_of=4,
    ),
    recurrent_gemma=dict(
        hidden_size=8, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, attention_window_size=4,
    ),
    lfm2=dict(
        hidden_size=8, intermediate_size=12, block_auto_adjust_ff_dim=False,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        layer_types=['conv', 'full_attention'],
    ),
    olmo_hybrid=dict(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, linear_key_head_dim=4,
        linear_value_head_dim=6, rope_theta=None, pad_token_id=None,
        eos_token_id=1, layer_types=['linear_attention', 'full_attention'],
    ),
    kimi_linear=dict(
        hidden_size=8, intermediate_size=12, moe_intermediate_size=4,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3,
        linear_head_dim=4, linear_num_heads=1, num_experts=4,
        num_experts_per_token=2, pad_token_id=None, bos_token_id=None,
        eos_token_id=1, layer_types=['linear_attention', 'full_attention'],
    ),
    falcon_h1=dict(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        mamba_d_ssm=12, mamba_n_heads=3, mamba_d_state=3,
        embedding_multiplier=3.5, lm_head_multiplier=0.7,
        mlp_multipliers=[0.75, 0.625], key_multiplier=0.4,
        ssm_in_multiplier=1.25, ssm_out_multiplier=0.9,
        ssm_multipliers=[0.5, 1.25, 0.75, 1.125, 0.375],
        attention_in_multiplier=1.2, attention_out_multiplier=0.75,
        mamba_rms_norm=True,
    ),
    nemotron_h=dict(
        hidden_size=8, intermediate_size=12, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, mamba_num_heads=3, mamba_head_dim=4,
        n_groups=1, ssm_state_size=3, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=8,
        moe_shared_expert_intermediate_size=6, moe_latent_size=4,
        layers_block_type=[
            'linear_attention', 'moe', 'full_attention', 'mlp',
        ],
    ),
    bamba=dict(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, mamba_n_heads=4,
        mamba_n_groups=2, mamba_d_state=3, attn_layer_indices=[1],
    ),
    qwen3_5_text=dict(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=4,
        linear_value_head_dim=4,
        layer_types=['linear_attention', 'full_attention'],
    ),
    qwen3_next=dict(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=4,
        linear_value_head_dim=4, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=4, shared_expert_intermediate_size=6,
        mlp_only_layers=[0],
        layer_types=['linear_attention', 'full_attention'],
    ),
    granitemoehybrid=dict(
        hidden_size=8, intermediate_size=4, shared_intermediate_size=6,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=4, num_experts_per_tok=2, mamba_n_heads=4,
        mamba_n_groups=2, mamba_d_state=3, embedding_multiplier=12.0,
        logits_scaling=6.0, residual_multiplier=0.22, attention_multiplier=0.4,
        position_embedding_type='nope',
        layer_types=['linear_attention', 'full_attention'],
    ),
    jamba=dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_experts=3,
        num_experts_per_tok=2, expert_layer_period=2, expert_layer_offset=0,
        attn_layer_period=2, attn_layer_offset=1, mamba_d_state=3,
        pad_token_id=None,
    ),
    minimax=dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
        head_dim=6, num_experts_per_tok=2, block_size=4,
        full_attn_alpha_factor=1.5, full_attn_beta_factor=0.5,
        linear_attn_alpha_factor=0.75, linear_attn_beta_factor=1.25,
        mlp_alpha_factor=1.125, mlp_beta_factor=0.875,
        layer_types=['linear_attention', 'full_attention'],
    ),
    zamba2=dict(
        hidden_size=8, intermediate_size=12, num_hidden_layers=4,
        num_attention_heads=2, n_mamba_heads=2, mamba_d_state=3,
        num_mem_blocks=2, adapter_rank=2, use_shared_attention_adapter=True,
        use_mem_rope=True,
        layers_block_type=['linear_attention', 'hybrid', 'hybrid', 'hybrid'],
    ),
)


@functools.cache
def library():
  """Returns `transformers`, which says nothing but what matters."""
  import transformers
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  return transformers


def build(family, vocabulary=VOCABULARY, **sizes):
  """Returns a model of a family, in float32.

  Args:
    family: Its `model_type`.
    vocabulary: The number of tokens.
    **sizes: Values of its config.
  """
  import torch

  kind = getattr(library(), convert.FAMILIES[family].architecture)
  model = kind(kind.config_class(vocab_size=vocabulary, **sizes))
  # Initial values leave much out: biases of 0, scales of 1, maps near 0.
  generator = torch.Generator().manual_seed(0)
  draw = lambda shape: torch.randn(shape, generator=generator)
  with torch.no_grad():
    for name, value in model.named_parameters():
      if 'time_mix' in name:
        value.copy_(torch.rand(value.shape, generator=generator))
      elif 'conv' in name:
        value.copy_(0.5 * draw(value.shape))
      elif value.ndim > 1 and 'A_log' not in name:
        value.copy_(draw(value.shape) * (1.5 / value.shape[-1] ** 0.5))
      else:
        value.add_(0.2 * draw(value.shape))
    for name, value in model.named_buffers():
      if 'correction' in name:
        value.copy_(0.2 * draw(value.shape))
  return model.float().eval()


def save(model, folder):
  """Writes a model as its family is published."""
  model.save_pretrained(folder)
  change = dict(kimi_linear=_as_kimi, olmo_hybrid=_as_olmo)
  if model.config.model_type not in change:
    return
  from safetensors import numpy as files

  path = folder / 'model.safetensors'
  found = change[model.config.model_type](files.load_file(path), model.config)
  files.save_file(found, path, metadata=dict(format='pt'))


def _as_kimi(found, config):
  """Returns tensors by the names of Kimi Linear as it was published."""
  del config
  # `transformers` 5.23.0 names all MLPs as if they were experts.
  return {
      re.sub(r'block_sparse_moe\.(\w+_proj)', r'mlp.\1', name): value
      for name, value in found.items()
  }


def _as_olmo(found, config):
  """Returns the tensors of OLMo Hybrid as it was published."""
  # `transformers` 5.23.0 cuts one convolution in three equal parts, whatever
  # the sizes are, and gives a norm of blocks with attention another name.
  keys = config.linear_num_key_heads * config.linear_key_head_dim
  for i, kind in enumerate(config.layer_types):
    block = f'model.layers.{i}'
    if kind == 'full_attention':
      found[f'{block}.post_attention_layernorm.weight'] = found.pop(
          f'{block}.feedforward_layer_norm.weight'
      )
      continue
    names = [f'{block}.linear_attn.{u}_conv1d.weight' for u in 'qkv']
    whole = np.concatenate([found[name] for name in names])
    found |= dict(zip(names, map(
        np.ascontiguousarray, np.split(whole, [keys, 2 * keys])
    )))
  return found


def tokens(vocabulary=VOCABULARY, rows=2, length=23):
  """Returns ids `[B, T]`, int32."""
  rng = np.random.default_rng(1)
  return rng.integers(0, vocabulary, (rows, length), np.int32)


def logits(model, ids):
  """Returns the logits `[B, T, V]` of one pass over whole sequences."""
  import torch

  with torch.no_grad():
    return model(
        torch.tensor(ids.astype(np.int64)), use_cache=False
    ).logits.numpy()


def greedy(model, ids, length):
  """Returns the most probable continuation `[B, length]`, without a cache."""
  for _ in range(length):
    best = logits(model, ids)[:, -1:].argmax(-1)
    ids = np.concatenate([ids, best.astype(np.int32)], axis=1)
  return ids[:, -length:]


def make_fixtures():
  """Writes a folder for each family, with the logits that it should give."""
  import torch

  for family in sys.argv[1:] or SMALL:
    sizes = SMALL[family]
    model = build(family, vocabulary=13, **sizes)
    derived, held = convert.FAMILIES[family].derived, model.state_dict()
    constants = {
        name: value.clone() for name, value in model.named_buffers()
        if name not in held or name.endswith(derived)
    }
    save(model.half(), FIXTURES / family)
    (FIXTURES / family / 'generation_config.json').unlink()
    model.float()  # Of the rounded weights.
    for name, value in constants.items():
      model.get_buffer(name).copy_(value)
    if family == 'rwkv':  # `half` leaves these alone.
      assert model.rwkv.blocks[0].attention.time_decay.dtype == torch.float32
    ids = tokens(vocabulary=13, rows=1, length=9)
    np.savez_compressed(
        FIXTURES / family / 'expected.npz', ids=ids, logits=logits(model, ids)
    )


if __name__ == '__main__':
  make_fixtures()
