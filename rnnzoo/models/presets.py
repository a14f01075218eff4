"""Published models, as configurations of the one backbone."""

from rnnzoo.models.config import ModelConfig


def _lra(features, state_features, dropout, r_min, r_max, **fields):
  """An LRU classifier of table 9 of the LRU paper."""
  options = dict(state_features=state_features, r_min=r_min, r_max=r_max)
  if 'max_phase' in fields:
    options['max_phase'] = fields.pop('max_phase')
  return ModelConfig(
      layer='lru', num_layers=6, features=features, layer_options=options,
      norm='batch', mlp='none', dropout=dropout, dropout_over_time=True,
      **dict(dict(gate='glu'), **fields),
  )


def _griffin(features, hidden_features, num_layers, num_heads=0):
  """A language model of table 2 of the Griffin paper.

  Without heads it is Hawk, recurrent throughout; with them each third layer is
  attention, of which all heads share keys and values. The table's sizes do not
  count the embedding, and are those of all its models: Hawk has a little more
  than Griffin.
  """
  output_scale = 2 / num_layers
  layer, options = 'griffin', dict(
      hidden_features=hidden_features, output_scale=output_scale
  )
  if num_heads:
    layer, options = 'griffin,griffin,attention', dict(
        griffin=options,
        attention=dict(
            num_heads=num_heads, head_features=128, num_kv_heads=1, window=1024,
            rotary_fraction=0.5, use_output_bias=True,
            output_scale=output_scale,
        ),
    )
  return ModelConfig(
      layer=layer, num_layers=num_layers, features=features, mlp_factor=3,
      tie_embeddings=True, layer_options=options, scan_layers=True,
  )


def _recurrentgemma(features, num_layers, num_heads):
  """RecurrentGemma, of the official code: a Griffin with other heads."""
  output_scale = 2 / num_layers
  return ModelConfig(
      layer='griffin,griffin,attention', num_layers=num_layers,
      features=features, mlp_factor=3, vocab_size=256_000, tie_embeddings=True,
      scale_embeddings=True, soft_cap=30.0, scan_layers=True,
      layer_options=dict(
          griffin=dict(
              hidden_features=features, num_heads=num_heads,
              initialization='recurrentgemma', output_scale=output_scale,
          ),
          attention=dict(
              num_heads=num_heads, num_kv_heads=1, window=2049,
              rotary_fraction=0.5, use_output_bias=True,
              output_scale=output_scale,
          ),
      ),
  )


def _mamba(num_layers, features, layer='mamba', **fields):
  """A language model of the Mamba papers: the layer is all there is."""
  fields = dict(tie_embeddings=True, scan_layers=True) | fields
  return ModelConfig(
      layer=layer, num_layers=num_layers, features=features, mlp='none',
      norm_epsilon=1e-5, embed_std=0.02, **fields,
  )


def _psmnist(layer, features, order):
  """A classifier of pixel sequences by an LMU and its last output."""
  return ModelConfig(
      layer=layer, num_layers=1, features=features, mlp='none',
      layer_options=dict(order=order, theta=784.0), in_features=1,
      num_classes=10, pooling='last',
  )


def _rwkv4(num_layers, features):
  """A language model of RWKV-4: two of our blocks are one layer of theirs."""
  return ModelConfig(
      layer='rwkv4,rwkv4_channel_mix', num_layers=2 * num_layers,
      features=features, norm='layer', norm_epsilon=1e-5, mlp='none',
      embed_norm=True, embed_std=1e-4, scan_layers=True,
  )


def _rwkv7(num_layers, features, decay_rank, value_rank, gate_rank):
  """A language model of RWKV-7, sizes and ranks from memory; see `_rwkv4`.

  The first layer has parameters that it does not use (`v0`, `v1`, `v2`);
  published weights leave them out.
  """
  return ModelConfig(
      layer='rwkv7,rwkv7_channel_mix', num_layers=2 * num_layers,
      features=features, norm='layer', norm_epsilon=1e-5, mlp='none',
      vocab_size=65_536, embed_norm=True, embed_std=1e-4, scan_layers=True,
      layer_options=dict(rwkv7=dict(
          decay_rank=decay_rank, rate_rank=decay_rank, value_rank=value_rank,
          gate_rank=gate_rank,
      )),
  )


def _transformer(num_layers, features, num_heads, context, **fields):
  """GPT-2 as nanoGPT has it, but for rotary positions instead of learned ones.

  So there are `context * features` fewer parameters, which nanoGPT leaves out
  where it prints their number; and text may be longer than the context, of
  which a token then sees the last part.
  """
  use_bias = fields.get('use_bias', True)
  return ModelConfig(
      layer='attention', num_layers=num_layers, features=features,
      norm='layer', norm_epsilon=1e-5, mlp='gelu', mlp_factor=4,
      tie_embeddings=True, embed_std=0.02,
      layer_options=dict(
          num_heads=num_heads, window=context, use_bias=use_bias,
          use_output_bias=use_bias, init_std=0.02,
          output_scale=1 / (2 * num_layers),
      ),
      **fields,
  )


def _s5(features, state_features, blocks, c_init, dropout, **fields):
  """An S5 classifier of the official scripts."""
  options = dict(
      state_features=state_features, blocks=blocks, c_init=c_init,
      bidirectional=True, **fields.pop('options', {}),
  )
  return ModelConfig(
      layer='s5', features=features, layer_options=options, norm='batch',
      mlp='none', dropout=dropout, dropout_over_time=True,
      **dict(num_layers=6, gate='half_glu') | fields,
  )


def _s4(features, state_features, norm_position, layer='s4', **fields):
  """An S4 or S4D classifier of the official configs of the long range arena.

  Theirs adds the two directions up; here a linear map brings them together.
  """
  options = dict(
      state_features=state_features, output_map='none',
      **fields.pop('options', {}),
  )
  if layer == 's4d':
    options['init'] = 'legs'
  return ModelConfig(
      layer=layer, num_layers=6, features=features, layer_options=options,
      bidirectional=True, norm='batch', norm_position=norm_position,
      gate='glu', mlp='none', **fields,
  )


def _xlstm(num_layers, features, ratio):
  """A language model of the xLSTM paper, `ratio` mLSTM blocks to an sLSTM.

  The sLSTM comes last in each period. The paper has it elsewhere: in the
  [7:1] of 48 blocks at 3, 5, 7, 40, 42 and 44, and at 3 and 20 of 24, which is
  11:1 (`layer` of 48 names says so, without a loop over depth). Its LayerNorms
  have no bias.
  """
  options = dict(mlstm_block=dict(num_heads=4, num_layers=num_layers))
  layer = ['mlstm_block']
  if ratio:
    layer = [*(ratio * layer), 'slstm_block']
    options['slstm_block'] = dict(num_heads=4)
  return ModelConfig(
      layer=tuple(layer), num_layers=num_layers, features=features,
      layer_options=options, norm='layer', norm_epsilon=1e-5,
      mlp='geglu' if ratio else 'none', mlp_factor=1.3, mlp_multiple=64,
      mlp_layers='slstm_block' if ratio else '', use_bias=False,
      embed_std=(2 / (5 * features)) ** 0.5, scan_layers=True,
  )


# Published models, by name. Vocabularies and classes belong to the data.
PRESETS = dict(
    gpt2_124m=_transformer(12, 768, 12, 1024),
    griffin_100m=_griffin(768, 1024, 12, 6),
    griffin_200m=_griffin(1024, 1536, 12, 8),
    griffin_400m=_griffin(1536, 2048, 12, 12),
    griffin_1p3b=_griffin(2048, 2560, 24, 16),
    griffin_3b=_griffin(3072, 4096, 24, 24),
    griffin_7b=_griffin(4096, 5632, 32, 32),
    griffin_14b=_griffin(5120, 8192, 40, 40),
    hawk_100m=_griffin(768, 1024, 12),
    hawk_200m=_griffin(1024, 1536, 12),
    hawk_400m=_griffin(1536, 2048, 12),
    hawk_1p3b=_griffin(2048, 2560, 24),
    hawk_3b=_griffin(3072, 4096, 24),
    hawk_7b=_griffin(4096, 5632, 32),
    min_gru_shakespeare=ModelConfig(
        layer='min_gru', num_layers=3, features=384,
        layer_options=dict(expansion_factor=2), dropout=0.2,
    ),
    min_lstm_shakespeare=ModelConfig(
        layer='min_lstm', num_layers=3, features=384,
        layer_options=dict(expansion_factor=2), dropout=0.2,
    ),
    min_gru_selective_copying=ModelConfig(
        layer='min_gru', num_layers=3, features=64, mlp='none', vocab_size=16,
        layer_options=dict(expansion_factor=6, learn_initial_state=True),
    ),
    min_lstm_selective_copying=ModelConfig(
        layer='min_lstm', num_layers=3, features=64, mlp='none', vocab_size=16,
        layer_options=dict(
            expansion_factor=6, normalize=False, learn_initial_state=True
        ),
    ),
    # xLSTM[0:1] of the official code.
    slstm_parity=ModelConfig(
        layer='slstm_block', num_layers=2, features=64, norm='layer',
        norm_epsilon=1e-5, mlp='geglu', mlp_factor=1.3, mlp_multiple=64,
        use_bias=False, vocab_size=3, layer_options=dict(num_heads=1),
    ),
    mamba_130m=_mamba(24, 768),
    mamba_370m=_mamba(48, 1024),
    mamba_790m=_mamba(48, 1536),
    mamba_1p4b=_mamba(48, 2048),
    mamba_2p8b=_mamba(64, 2560),
    mamba2_130m=_mamba(24, 768, 'mamba2'),
    mamba2_370m=_mamba(48, 1024, 'mamba2'),
    mamba2_780m=_mamba(48, 1536, 'mamba2'),
    mamba2_1p3b=_mamba(48, 2048, 'mamba2'),
    mamba2_2p7b=_mamba(64, 2560, 'mamba2'),
    mamba_selective_copying=_mamba(
        2, 64, vocab_size=16, tie_embeddings=False, scan_layers=False
    ),
    nano_gpt_shakespeare=_transformer(
        6, 384, 6, 256, use_bias=False, dropout=0.2
    ),
    # One layer on permuted images, one pixel a token; here, as in every model,
    # with an encoder, a norm and a residual connection that it does not have.
    lmu_psmnist=_psmnist('lmu', 212, 256),
    parallel_lmu_psmnist=_psmnist('parallel_lmu', 346, 468),
    recurrentgemma_2b=_recurrentgemma(2560, 26, 10),
    recurrentgemma_9b=_recurrentgemma(4096, 38, 16),
    rwkv4_169m=_rwkv4(12, 768),
    rwkv4_430m=_rwkv4(24, 1024),
    rwkv4_1p5b=_rwkv4(24, 2048),
    rwkv4_3b=_rwkv4(32, 2560),
    rwkv4_7b=_rwkv4(32, 4096),
    rwkv4_14b=_rwkv4(40, 5120),
    rwkv7_0p19b=_rwkv7(12, 768, 64, 32, 128),
    rwkv7_0p4b=_rwkv7(24, 1024, 64, 32, 128),
    rwkv7_1p5b=_rwkv7(24, 2048, 96, 64, 256),
    rwkv7_2p9b=_rwkv7(32, 2560, 96, 64, 320),
    s4_listops=_s4(256, 4, 'post', num_classes=10),
    s4_text=_s4(256, 4, 'pre', num_classes=2),
    s4_image=_s4(512, 64, 'post', dropout=0.1, in_features=1, num_classes=10),
    s4_pathfinder=_s4(256, 64, 'pre', in_features=1, num_classes=2),
    s4_pathx=_s4(
        256, 64, 'pre', in_features=1, num_classes=2,
        options=dict(dt_min=1e-4),
    ),
    s4d_listops=_s4(256, 4, 'post', 's4d', num_classes=10),
    s4d_text=_s4(256, 4, 'pre', 's4d', num_classes=2),
    s4d_image=_s4(
        512, 64, 'post', 's4d', dropout=0.1, in_features=1, num_classes=10
    ),
    s4d_pathfinder=_s4(256, 64, 'pre', 's4d', in_features=1, num_classes=2),
    s4d_pathx=_s4(
        256, 64, 'pre', 's4d', in_features=1, num_classes=2,
        options=dict(dt_min=1e-4),
    ),
    s5_listops=_s5(
        128, 16, 8, 'lecun_normal', 0.0, num_layers=8, gate='half_glu2',
        num_classes=10,
    ),
    s5_text=_s5(
        256, 192, 12, 'lecun_normal', 0.1, gate='half_glu2', num_classes=2
    ),
    s5_image=_s5(
        512, 384, 3, 'lecun_normal', 0.1, in_features=1, num_classes=10,
        options=dict(clip_eigs=True),
    ),
    s5_pathfinder=_s5(
        192, 256, 8, 'trunc_standard_normal', 0.05, in_features=1,
        num_classes=2,
    ),
    s5_pathx=_s5(
        128, 256, 16, 'complex_normal', 0.0, in_features=1, num_classes=2,
        options=dict(dt_min=1e-4),
    ),
    s5_speech=_s5(
        96, 128, 16, 'lecun_normal', 0.1, in_features=1, num_classes=35
    ),
    lru_scifar=_lra(512, 384, 0.1, 0.9, 0.999, in_features=3, num_classes=10),
    lru_listops=_lra(128, 256, 0.0, 0.0, 0.99, num_classes=10),
    lru_text=_lra(256, 192, 0.1, 0.5, 0.9, num_classes=2),
    lru_pathfinder=_lra(
        192, 256, 0.0, 0.9, 0.999, in_features=1, num_classes=2,
        bidirectional=True,
    ),
    lru_pathx=_lra(
        128, 256, 0.0, 0.999, 0.9999, in_features=1, num_classes=2,
        bidirectional=True, gate='half_glu', max_phase=0.314159265,
    ),
    xlstm_1_0_125m=_xlstm(24, 768, 0),
    xlstm_1_0_350m=_xlstm(48, 1024, 0),
    xlstm_7_1_125m=_xlstm(24, 768, 7),
    xlstm_7_1_350m=_xlstm(48, 1024, 7),
    xlstm_7b=ModelConfig(
        layer='mlstm_large', num_layers=32, features=4096, vocab_size=50_304,
        layer_options=dict(num_heads=8), mlp='swiglu', mlp_factor=2.667,
        mlp_multiple=64, use_bias=False, soft_cap=30.0, scan_layers=True,
        embed_std=(2 / (5 * 4096)) ** 0.5,
    ),
)
