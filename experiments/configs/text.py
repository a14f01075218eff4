"""A character model of your own text.

  python -m experiments.train --config=experiments/configs/text.py \
      --config.data.path=my.txt --workdir=runs/text
"""

from experiments.configs import default
from rnnzoo import models


def get_config():
  """Returns the config: minGRU, about two million parameters."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer='min_gru', num_layers=3, features=256, conv_kernel=4, dropout=0.1,
      layer_options=dict(expansion_factor=1),
  ))
  config.data.name = 'text_file'
  config.total_steps = 2000
  config.optimizer.learning_rate = 2e-3
  config.optimizer.end_learning_rate = 2e-4
  config.sample_characters = 400
  return config
