r"""Bytes of Wikipedia: enwik8 with its standard splits.

  curl -O https://mattmahoney.net/dc/enwik8.zip
  python -m experiments.train --config=experiments/configs/language/enwik8.py \
      --config.data.path=enwik8.zip --workdir=runs/enwik8

The first 90 million bytes train, the next 5 million choose the checkpoint, the
last 5 million are the test: `test_bits_per_byte` is the number that papers
report. A byte at the start of a window has no context, so longer windows
(`--config.data.sequence_length`) score better. Write another layer after the
file, `enwik8.py:mamba2`. It is a run for a GPU; nothing has been measured, and
no published number of these layers in this setting is known.
"""

from experiments.configs import default
from rnnzoo import models

PUBLISHED = []


def get_config(layer: str = 'min_gru'):
  """Returns the config: six layers of width 512, 20,000 steps."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=6, features=512, conv_kernel=4, dropout=0.1,
      dtype='bfloat16',
  ))
  default.use_data(config, 'enwik8')
  config.data.sequence_length = 1024
  config.total_steps = 20_000
  config.batch_size = 32
  config.log_every = 50
  # An evaluation reads five million bytes.
  config.eval_every = 2000
  config.save_every = 1000
  config.optimizer.learning_rate = 1e-3
  config.optimizer.end_learning_rate = 1e-4
  config.optimizer.warmup_steps = 500
  config.sample_characters = 1000
  # bfloat16 is slow on a CPU.
  config.smoke_overrides.model.update(dict(dtype='float32', dropout=0.0))
  return config
