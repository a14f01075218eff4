r"""Character models of Tiny Shakespeare, all layers in one published setting.

  python -m experiments.train \
      --config=experiments/configs/language/tiny_shakespeare.py:min_gru \
      --workdir=runs/shakespeare

Known of the paper of minGRU (arXiv 2410.01201): 3 layers, width 384, expansion
2, AdamW at 1e-3, batch 64, dropout 0.2; minGRU is best after about 575 steps,
the Transformer takes 2.5 times as many. Test losses there, in nats per
character: minGRU 1.548, minLSTM 1.555, Mamba 1.575, Transformer 1.547. Chosen
by us: GEGLU MLP, RMS norm, 256 characters, decay 0.1 (not on recurrent
parameters), clip 1.

`SETTINGS` has a model for each layer. A layer that has no convolution of its
own gets one of 4 taps, but for attention. RG-LRU and mLSTM are in the blocks of
their papers, `griffin` and `mlstm_block`. The size of the MLP makes all models
about as large as that of minGRU:

  min_gru 5,821,824     attention   5,811,456     griffin         5,778,336
  min_lstm 5,877,984    lru         5,877,984     gated_delta_net 5,900,118
  mamba 5,770,272       mlstm_block 5,798,232

`eval_loss` is on TFDS's validation split and chooses the checkpoint; its test
split is evaluated once, at the end. `eval_nanogpt_validation_loss` is on the
last 10 % of the text (both splits together), the number that others report.
Half of that text thus chooses the checkpoint.

Result of minGRU (`experiments/results/language/tiny_shakespeare`): 1.497 nats
there, best at the last step; on TFDS's test split 1.570. 127 minutes on two CPU
cores, 9 GB of memory. minLSTM, computed in bfloat16
(`--config.model.dtype=bfloat16`), which is quicker on CPUs that have it: 1.501,
test 1.577, 65 minutes beside other work. For comparison, nanoGPT's Transformer
of 6 layers reaches 1.4697.
"""

from experiments.configs import default
from rnnzoo import models

_PAPER = 'https://arxiv.org/abs/2410.01201'
# The test losses of other people, in nats per character.
PUBLISHED = [
    dict(
        layer=layer, metric='loss', value=value, error=None,
        split='nanogpt_validation', source=source,
    )
    for layer, value, source in [
        ('min_gru', 1.548, _PAPER),
        ('min_lstm', 1.555, _PAPER),
        ('mamba', 1.575, _PAPER),
        ('attention', 1.547, _PAPER),
    ]
]
# What a layer has beside the common setting.
SETTINGS = dict(
    min_gru=dict(
        layer_options=dict(expansion_factor=2), conv_kernel=4, mlp_factor=2.0
    ),
    min_lstm=dict(
        layer_options=dict(expansion_factor=2), conv_kernel=4, mlp_factor=1.375
    ),
    mamba=dict(layer_options=dict(expansion_factor=2), mlp_factor=2.125),
    attention=dict(
        layer_options=dict(num_heads=6, window=256), mlp_factor=3.0
    ),
    lru=dict(
        layer_options=dict(state_features=768, r_min=0.5, r_max=0.9),
        conv_kernel=4, mlp_factor=1.375,
    ),
    griffin=dict(layer_options=dict(hidden_features=768), mlp_factor=2.125),
    mlstm_block=dict(layer_options=dict(expansion_factor=2), mlp_factor=2.25),
    gated_delta_net=dict(mlp_factor=2.375),
)


def get_config(layer: str = 'min_gru'):
  """Returns the config.

  Args:
    layer: A key of `SETTINGS`, or another layer, which then has its
      default options and an MLP of factor 2.
  """
  config = default.get_config()
  config.model = default.model(
      models.ModelConfig(num_layers=3, features=384, dropout=0.2).replace(
          layer=layer, **SETTINGS.get(layer, {})
      )
  )
  default.use_data(config, 'tiny_shakespeare')
  config.data.sequence_length = 256
  config.eval_splits = ('validation', 'nanogpt_validation')
  config.total_steps = 700
  config.batch_size = 64
  config.log_every = 5
  config.eval_every = 25
  config.save_every = 25
  config.sample_characters = 1000
  # 24 are six heads of attention.
  config.smoke_overrides.model.update(dict(features=24, dropout=0.0))
  return config
