r"""minGRU on Tiny Shakespeare, in the published setting as far as it is known.

  python -m experiments.train \
      --config=experiments/configs/language/tiny_shakespeare.py \
      --workdir=runs/shakespeare

Known of the paper (arXiv 2410.01201): 3 layers, width 384, expansion 2, AdamW
at 1e-3, batch 64, dropout 0.2; best after about 575 steps; test loss 1.548 nats
per character. Chosen by us: causal convolution 4, GEGLU MLP of factor 2, RMS
norm, 256 characters, decay 0.1 (not on recurrent parameters), clip 1.

`eval_loss` is on TFDS's validation split and chooses the checkpoint; its test
split is evaluated once, at the end. `eval_nanogpt_validation_loss` is on the
last 10 % of the text (both splits together), the number that others report.

Result (`experiments/results/language/tiny_shakespeare`): 1.497 nats there, best
at the last step; on TFDS's test split 1.570. 5,821,824 parameters; 127 minutes
on two CPU cores, 9 GB of memory. For comparison, nanoGPT's Transformer of 6
layers reaches 1.4697.
"""

from experiments.configs import default
from rnnzoo import models


def get_config():
  """Returns the config."""
  config = default.get_config()
  config.model = default.model(
      models.PRESETS['min_gru_shakespeare'].replace(conv_kernel=4)
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
  return config
