r"""Copying: repeat 20 steps of 7 random bits, 8 steps after their end.

  python -m experiments.train \
      --config=experiments/configs/synthetic/copying.py:lru \
      --workdir=runs/copy

Source: minimal-LRU (https://github.com/NicolasZucchet/minimal-LRU), the copy
task of its README with the default arguments of `run_train.py`: four layers of
width 256 with 128 complex states, batch norm, GLU, dropout 0.1, batches of 64,
AdamW at 1e-3 with a cosine to 1e-7, half the rate for the recurrence, weight
decay 0.05, 4 epochs of 20,000 examples (1,250 steps). The task is defined in
`rnnzoo/data/synthetic/copying.py`. There the examples come again in each epoch,
and the outputs are 7 bits, not one of 128 patterns.

Expected: the README says that 100 % can be reached in 2 to 4 epochs.
"""

from experiments.configs import default
from rnnzoo import models

PUBLISHED = [
    dict(
        layer='lru', metric='accuracy', value=1.0, error=None, split='test',
        source='minimal-LRU, README',
    ),
]
# Options of the layers.
OPTIONS = dict(lru=dict(state_features=128, r_min=0.0, r_max=1.0))


def get_config(layer: str = 'lru'):
  """Returns the config: four layers of width 256."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=4, features=256, norm='batch', gate='glu',
      mlp='none', dropout=0.1, dropout_over_time=True,
      layer_options=OPTIONS.get(layer, {}),
  ))
  default.use_data(config, 'copying')
  config.data.eval_examples = 1000
  config.total_steps = 1250
  config.batch_size = 64
  config.log_every = 10
  config.eval_every = 125
  config.save_every = 125
  config.keep = 1
  config.optimizer.learning_rate = 1e-3
  config.optimizer.end_learning_rate = 1e-7
  config.optimizer.warmup_steps = 0
  config.optimizer.weight_decay = 0.05
  config.optimizer.recurrent_rate_factor = 0.5
  config.optimizer.clip = 0.0
  config.optimizer.options = dict(b2=0.999)
  config.smoke_overrides.update(dict(
      total_steps=30, batch_size=32, log_every=2, eval_every=30, save_every=30,
      model=dict(num_layers=1, features=32),
      data=dict(pattern_length=2, bits=2, pause=1, eval_examples=64),
      optimizer=dict(learning_rate=1e-2, warmup_steps=5),
  ))
  return config
