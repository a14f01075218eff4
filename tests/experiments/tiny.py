"""A model that trains in a second, on the text of the licence."""

from experiments.configs import default
from rnnzoo import layers
from rnnzoo import models


class Mine(layers.MinGRU):
  """A layer of the config's own."""


LAYERS = {'mine': Mine}


def get_config():
  """Returns the config."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer='min_gru', num_layers=2, features=16, conv_kernel=4, dropout=0.1,
  ))
  default.use_data(config, 'text_file')
  config.data.path = 'LICENSE'
  config.data.sequence_length = 32
  config.batch_size = 8
  # So that a shorter run is the beginning of a longer one.
  config.optimizer.schedule = 'constant'
  config.optimizer.warmup_steps = 0
  config.total_steps = 48
  config.log_every = 1
  config.eval_every = 16
  config.save_every = 4
  config.tensorboard = False
  return config
