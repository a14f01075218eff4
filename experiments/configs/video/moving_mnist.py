r"""Moving MNIST: ten frames of two bouncing digits, and the next ten."""

from experiments.configs import default
from rnnzoo import models


def get_config(variant: str = 'conv_s5'):
  """Returns the config.

  Args:
    variant: The layer; `_small` after it means small frames and a small model.
  """
  layer = variant.removesuffix('_small')
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=3, features=64, norm='layer', mlp='geglu',
      mlp_factor=1,
  ))
  default.use_data(config, 'moving_mnist')
  config.total_steps = 20_000
  config.batch_size = 16
  config.log_every = 50
  config.eval_every = 1000
  config.save_every = 1000
  config.keep = 1
  config.ema_decay = 0.99
  config.optimizer.schedule = 'constant'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.weight_decay = 0.01
  if layer != variant:
    config.model.num_layers = 2
    config.model.features = 16
    config.data.size = 32
    config.data.digit_size = 14
    config.data.eval_examples = 200
    config.total_steps = 1000
    config.batch_size = 8
    config.log_every = 25
    config.eval_every = 100
    config.save_every = 100
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
  config.smoke_overrides.update(dict(
      total_steps=60, batch_size=8, log_every=10, eval_every=30,
      save_every=30, keep=3, model=dict(num_layers=1, features=8),
      data=dict(
          sequence_length=4, horizon=2, size=20, digit_size=14,
          eval_examples=16,
      ),
      optimizer=dict(learning_rate=1e-2, warmup_steps=1),
  ))
  return config
