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

Results (`experiments/results/language/tiny_shakespeare`), one seed, in nats
per character, at the step that validation chose:

                          last 10 %   test  published  step   hours
  minGRU                      1.497  1.570      1.548   700     2.1  two cores
  minGRU, rate 2e-3, EMA      1.472  1.546      1.548   700    0.74  one core
  minLSTM                     1.501  1.577      1.555   700     1.1  two cores
  Mamba                       1.504  1.597      1.575   700     2.0  one core
  Transformer                 1.563  1.648      1.547   700     1.1  one core

All but the first compute in bfloat16 (`--config.model.dtype=bfloat16`), which
is quicker on CPUs that have it, and validate every 50 steps. minGRU, Mamba and
the Transformer took 9 to 10 GB of memory. EMA is an average of the weights,
with the flags `--config.optimizer.learning_rate=2e-3 --config.ema_decay=0.98`.
The other layers were not tried with these flags, and no rate was searched for
them. The Transformer still improved at the last step. nanoGPT's Transformer of
6 layers reaches 1.4697.
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
