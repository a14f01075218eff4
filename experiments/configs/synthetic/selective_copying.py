r"""Selective copying: remember M tokens scattered over L, then repeat them.

  python -m experiments.train \
      --config=experiments/configs/synthetic/selective_copying.py \
      --workdir=runs/copying

The task of the Mamba and minRNN papers, at L = 256 and M = 8; theirs is
`selective_copying_4096.py`. `--config.data.num_tokens=16` is harder, and
`--config.model.num_layers=1` and `=2` show what depth does. Model as in
arXiv 2410.01201: 3 layers of width 64, expansion 6, no convolution, no MLP.
`eval_accuracy` counts single tokens.

A run ends once 99 % of the validation tokens are right.

Result (`experiments/results/synthetic/selective_copying`) of an earlier run
that did not end there, but after 4,000 steps: all tokens of 1024 unseen
sequences right, 227,136 parameters; 0.33 s a step on two CPU cores, 22 minutes
if they do nothing else. It passed 99 % of the validation tokens at step 2,250.
"""

from experiments.configs import default
from rnnzoo import models

PUBLISHED = []  # The papers have longer sequences, see there.


def get_config():
  """Returns the config."""
  config = default.get_config()
  config.model = default.model(models.PRESETS['min_gru_selective_copying'])
  default.use_data(config, 'selective_copying')
  config.data.sequence_length = 256
  config.data.num_tokens = 8
  config.data.eval_examples = 1024
  config.total_steps = 4000
  config.batch_size = 64
  config.log_every = 20
  config.eval_every = 250
  config.save_every = 250
  config.keep = 1
  config.stop_at = dict(accuracy=0.99)
  config.optimizer.learning_rate = 3e-3
  config.optimizer.end_learning_rate = 3e-4
  config.optimizer.warmup_steps = 200
  config.optimizer.weight_decay = 0.05
  config.optimizer.options = dict(b2=0.95)
  config.smoke_overrides.update(dict(
      total_steps=100, batch_size=32, log_every=10, eval_every=50,
      save_every=50,
      data=dict(
          sequence_length=6, num_tokens=2, vocab_size=4, eval_examples=64
      ),
      optimizer=dict(learning_rate=1e-2, warmup_steps=10),
  ))
  return config
