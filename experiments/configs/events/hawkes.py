r"""Hawkes: events of three types that cause one another.

  python -m experiments.train \
      --config=experiments/configs/events/hawkes.py:lru --workdir=runs/hawkes

Also `:min_gru`, `:gru`, `:mamba`, or any other layer. The sequences are made by
rnnzoo/data/events/hawkes.py, 2,048 to train on; `excess` is how many nats per
event the model is above the process that made them.
`--config.model.event_density=intensity` describes the next event by rates in
place of a mixture.

Result (`experiments/results/events/hawkes`), three seeds, which also draw the
sequences: minGRU 0.0065 nats per event above the process (1.461, where the
process has 1.455 and a Poisson process 1.771), LRU 0.0121. A run takes about
five minutes on a CPU core that other programs used, too. No other layer has
been measured yet.
"""

from experiments.configs import default
from rnnzoo import models

# None: the process is our own.
PUBLISHED = []


def get_config(layer: str = 'lru'):
  """Returns the config: two blocks of width 32."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=32, mlp='gelu',
  ))
  default.use_data(config, 'hawkes')
  config.total_steps = 800
  config.batch_size = 32
  config.log_every = 40
  config.eval_every = 160
  config.save_every = 160
  config.keep = 1
  config.optimizer.learning_rate = 4e-3
  config.optimizer.end_learning_rate = 4e-5
  config.optimizer.warmup_steps = 40
  config.optimizer.weight_decay = 0.01
  config.smoke_overrides.update(dict(
      total_steps=40, batch_size=16, log_every=10, eval_every=20,
      save_every=20, keep=3, model=dict(num_layers=1, features=16),
      data=dict(
          sequence_length=24, duration=20.0, train_examples=64,
          eval_examples=16,
      ),
      optimizer=dict(learning_rate=2e-2, warmup_steps=1),
  ))
  return config
