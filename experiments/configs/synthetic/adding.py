r"""The adding problem: the sum of two marked numbers among 50 to 100.

  python -m experiments.train \
      --config=experiments/configs/synthetic/adding.py:lru \
      --workdir=runs/adding

The task of Hochreiter and Schmidhuber (1997) with sequences of unequal lengths:
padding is masked. Always answering 1 has a mean squared error of 1/6.

Result (`experiments/results/synthetic/adding`): LRU has a mean squared error of
0.0030 on the test part after 2,000 steps, which take 65 s on two CPU cores.
"""

from experiments.configs import default
from rnnzoo import models

# None known: the original counts sequences until the errors are small.
PUBLISHED = []
# Options of the layers.
OPTIONS = dict(lru=dict(r_min=0.9, r_max=0.999))


def get_config(layer: str = 'lru'):
  """Returns the config: two layers of width 32."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=32, norm='layer', mlp='geglu',
      pooling='last', layer_options=OPTIONS.get(layer, {}),
  ))
  default.use_data(config, 'adding')
  config.total_steps = 2000
  config.batch_size = 50
  config.log_every = 50
  config.eval_every = 200
  config.save_every = 200
  config.keep = 1
  config.optimizer.learning_rate = 3e-3
  config.optimizer.end_learning_rate = 1e-5
  config.optimizer.warmup_steps = 100
  config.optimizer.weight_decay = 0.01
  config.smoke_overrides.update(dict(
      total_steps=30, batch_size=32, log_every=2, eval_every=15, save_every=15,
      keep=3,
      data=dict(min_length=5, max_length=8, eval_examples=64),
      optimizer=dict(learning_rate=1e-2, warmup_steps=5),
  ))
  return config
