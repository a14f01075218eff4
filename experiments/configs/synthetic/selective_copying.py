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

Measured (`experiments/results/synthetic/selective_copying`), eight tokens,
three seeds, the tokens of the test that are right, on one CPU core:

  depth  parameters          %           steps    minutes
      1      77,120  57.4 to 58.1         4,000   5 to 10
      2     152,128  99.2 to 99.3 2,250 to 3,000  7 to 12
      3     227,136  99.4 to 99.8 2,000 to 2,750  8 to 10

One layer cannot select, as its gates see the input alone; the second layer sees
what the first has read. Sixteen tokens have not been run yet:

  python -m experiments.sweep --seeds=3 --workdir=runs/depths \
      --configs=experiments/configs/synthetic/selective_copying.py \
      --grid=data.num_tokens=8,16 --grid=model.num_layers=1,2,3 \
      --results=experiments/results

An earlier run of depth 3 that did not end at 99 %, but after 4,000 steps, had
all tokens of 1024 sequences right.
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
