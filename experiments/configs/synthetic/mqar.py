r"""Associative recall (MQAR): four pairs of a key and a value, four queries.

  python -m experiments.train --config=experiments/configs/synthetic/mqar.py \
      --workdir=runs/mqar --config.model.layer=mamba2

The smallest setting of figure 2 of "Zoology"
(https://arxiv.org/abs/2312.04927): sequences of 64 tokens, a vocabulary of
8192. Its harder ones are
`--config.data.sequence_length=128 --config.data.num_pairs=8`, and 256 and 16.
Two blocks, each a short convolution, the layer and no MLP. There they have
widths from 64 to 512 and train for 64 epochs of 100,000 examples in batches of
512 (256 for 256 tokens), 12,544 or 25,024 steps, with learning rates of 1e-4,
4.6e-4, 2.2e-3 and 1e-2; a test has 3000 examples. This config is cheaper, and
its examples never repeat. `mqar_2048.py` is xLSTM's setting.
`eval_accuracy` counts queries. `experiments/benchmarks/recall.py` trains one
layer after the other and says how far they get.

A run ends once 99 % of the validation answers are right.

Expected: none known as a number (the paper has figures). Measured, one seed
(`experiments/results/synthetic/mqar`), right answers of the test:

                          %    steps   hours
  KDA                  99.7    1,100    0.09   two busy cores
  Mamba-3              99.5    1,800    0.22   one core
  Gated DeltaProduct   44.4    4,000    0.75   two busy cores, still rising
  SignedMinGRU         23.8    4,000    0.44   one core
  LinOSS               17.1    4,000    0.41   one core

A guess among the four values of the sequence is right in 25 %. The learning
rate was not searched. The sweep goes on with

  python -m experiments.sweep --workdir=runs/mqar \
      --configs=experiments/configs/synthetic/mqar.py:mamba2,min_gru,lru \
      --results=experiments/results
"""

from experiments.configs import default
from rnnzoo import models

PUBLISHED = []
# Options of the layers.
OPTIONS = dict(attention=dict(window=256))


def get_config(layer: str = 'attention'):
  """Returns the config."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=64, conv_kernel=3, mlp='none',
      layer_options=OPTIONS.get(layer, {}),
  ))
  default.use_data(config, 'mqar')
  config.data.sequence_length = 64
  config.data.num_pairs = 4
  config.data.vocab_size = 8192
  config.total_steps = 4000
  config.batch_size = 64
  config.log_every = 20
  config.eval_every = 100
  config.save_every = 100
  config.keep = 1
  config.stop_at = dict(accuracy=0.99)
  config.optimizer.learning_rate = 3e-3
  config.optimizer.end_learning_rate = 3e-4
  config.optimizer.warmup_steps = 100
  config.smoke_overrides.update(dict(
      total_steps=100, batch_size=32, log_every=10, eval_every=50,
      save_every=50, model=dict(num_layers=1),
      data=dict(
          sequence_length=8, num_pairs=2, vocab_size=12, eval_examples=64
      ),
      optimizer=dict(learning_rate=1e-2, warmup_steps=10),
  ))
  return config
