r"""Griffin of 1.3 billion parameters on 256 chips: see first what it needs.

  python -m experiments.train \
      --config=experiments/configs/language/griffin_1p3b.py \
      --plan=v5e:16x16

The model of table 2 of the paper (arXiv 2402.19427) with a vocabulary of
32,768, and a million tokens a step: two sequences a chip. What it needs is in
`experiments/results/plans`. Training reads your own text, `data.path`, as
bytes, and then has their vocabulary.
"""

from experiments.configs import default
from rnnzoo import models


def get_config():
  """Returns the config."""
  config = of_preset('griffin_1p3b', vocab_size=32_768)
  config.smoke_overrides.model.num_layers = 3  # The whole pattern, once.
  config.smoke_overrides.model.layer_options = dict(
      griffin=dict(hidden_features=16),
      attention=dict(head_features=8, num_heads=2, window=32),
  )
  return config


def of_preset(name: str, vocab_size: int = 50_288):
  """Returns the config of a preset, a million tokens a step on 256 chips."""
  config = default.get_config()
  config.model = default.model(models.PRESETS[name].replace(
      vocab_size=vocab_size, dtype='bfloat16', remat='full'
  ))
  config.mesh = dict(data=-1, fsdp=16, model=1, sequence=1)
  default.use_data(config, 'text_file')
  config.data.level = 'byte'
  config.data.sequence_length = 2048
  config.batch_size = 512
  config.total_steps = 100_000
  config.log_every = 10
  config.eval_every = 1000
  config.save_every = 500
  config.optimizer.learning_rate = 4e-4
  config.optimizer.end_learning_rate = 4e-5
  config.optimizer.warmup_steps = 1000
  config.optimizer.options = dict(b2=0.95)
  config.smoke_overrides.mesh = dict(fsdp=1)
  return config
