r"""A character model of your own text, in about ten minutes on two CPU cores.

  python -m experiments.train --config=experiments/configs/text.py \
      --config.data.path=my.txt --workdir=runs/text

The run reads four million characters, whatever the length of the text, and
evaluates ten times on the whole validation part (5 % of the text). For a text
of many megabytes, evaluate less often: `--config.eval_every=500`.

Result (`experiments/results/text`): on Tiny Shakespeare as one file, 2.079 bits
per character on the validation part, where gzip needs 3.149; 9.3 minutes of
training on two CPU cores.

To go bigger, in this order:

* longer training, for a text of several megabytes:
  `--config.total_steps=5000`, which takes five times as long;
* longer sequences and larger batches: `--config.data.sequence_length=256
  --config.batch_size=64`, four times as long for each step;
* a larger model: `--config.model.features=384 --config.model.num_layers=6`. On
  a GPU this is the first thing to change.
"""

from experiments.configs import default
from rnnzoo import models


def get_config():
  """Returns the config: minGRU, about two million parameters, 1000 steps."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer='min_gru', num_layers=3, features=256, conv_kernel=4, dropout=0.1,
      layer_options=dict(expansion_factor=1),
  ))
  default.use_data(config, 'text_file')
  config.data.sequence_length = 128
  config.total_steps = 1000
  config.batch_size = 32
  config.optimizer.learning_rate = 2e-3
  config.optimizer.end_learning_rate = 2e-4
  config.sample_characters = 400
  return config
