r"""ETTh1: the next hours of seven columns of an electricity transformer.

  python -m experiments.train \
      --config=experiments/configs/forecasting/etth1.py:min_gru \
      --config.data.path=FOLDER --config.data.horizon=96 --workdir=runs/etth1

FOLDER holds ETTh1.csv, see rnnzoo/data/series/ett.py.
"""

from experiments.configs import default
from rnnzoo import models


def get_config(layer: str = 'min_gru', file: str = 'ETTh1', rate: float = 5e-3):
  """Returns the config."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=64, mlp='none', pooling='last',
  ))
  default.use_data(config, 'ett')
  config.data.file = file
  config.total_steps = 2560
  config.batch_size = 32
  config.log_every = 64
  config.eval_every = 256
  config.save_every = 256
  config.keep = 1
  config.patience = 3
  config.optimizer.name = 'adam'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.end_learning_rate = 0.0
  config.optimizer.warmup_steps = 0
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip = 0.0
  config.optimizer.options = dict(b2=0.999)
  if layer == 'dlinear':
    config.model.window_norm = 'none'
    config.optimizer.learning_rate = rate
  return config
