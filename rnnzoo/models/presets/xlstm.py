"""xLSTM (Beck et al., 2024) and xLSTM-7B (Beck et al., 2025).

https://arxiv.org/abs/2405.04517 and https://arxiv.org/abs/2503.13427.
xLSTM[a:b] has `a` mLSTM blocks for every `b` sLSTM blocks.
"""

from rnnzoo.models.config import ModelConfig


def _xlstm(num_layers: int, features: int, ratio: int) -> ModelConfig:
  """A language model xLSTM[ratio:1], or xLSTM[1:0] if `ratio` is 0.

  The sLSTM is the last block of each period. The paper places it elsewhere: in
  the [7:1] of 48 blocks at 3, 5, 7, 40, 42 and 44, and in that of 24 blocks at
  3 and 20, which is 11:1. A `layer` of 48 names builds exactly that, without a
  loop over depth. The LayerNorms of the paper have no bias.
  """
  options = dict(mlstm_block=dict(num_heads=4, num_layers=num_layers))
  layer = ['mlstm_block']
  if ratio:
    layer = [*(ratio * layer), 'slstm_block']
    options['slstm_block'] = dict(num_heads=4)
  return ModelConfig(
      layer=','.join(layer), num_layers=num_layers, features=features,
      layer_options=options, norm='layer', norm_epsilon=1e-5,
      mlp='geglu' if ratio else 'none', mlp_factor=1.3, mlp_multiple=64,
      mlp_layers='slstm_block' if ratio else '', use_bias=False,
      embed_std=(2 / (5 * features)) ** 0.5, scan_layers=True,
  )


PRESETS = dict(
    # xLSTM[0:1] of the official code.
    slstm_parity=ModelConfig(
        layer='slstm_block', num_layers=2, features=64, norm='layer',
        norm_epsilon=1e-5, mlp='geglu', mlp_factor=1.3, mlp_multiple=64,
        use_bias=False, vocab_size=3, layer_options=dict(num_heads=1),
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
