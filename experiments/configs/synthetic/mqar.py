r"""Associative recall (MQAR): four pairs of a key and a value, four queries.

  python -m experiments.train --config=experiments/configs/synthetic/mqar.py \
      --workdir=runs/mqar --config.model.layer=mamba2

The smallest setting of "Zoology" (https://arxiv.org/abs/2312.04927): sequences
of 64 tokens, a vocabulary of 8192. Its harder ones are
`--config.data.sequence_length=128 --config.data.num_pairs=8`, and 256 and 16.
Two blocks, each a short convolution, the layer and no MLP, as there.
`eval_accuracy` counts queries. `experiments/benchmarks/recall.py` trains one
layer after the other and says how far they get.
"""

from experiments.configs import default
from rnnzoo import models


def get_config():
  """Returns the config."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer='attention', num_layers=2, features=64, conv_kernel=3, mlp='none',
      layer_options=dict(attention=dict(window=64)),
  ))
  default.use_data(config, 'mqar')
  config.data.sequence_length = 64
  config.data.num_pairs = 4
  config.data.vocab_size = 8192
  config.total_steps = 4000
  config.batch_size = 64
  config.log_every = 20
  config.eval_every = 250
  config.save_every = 250
  config.optimizer.learning_rate = 3e-3
  config.optimizer.end_learning_rate = 3e-4
  config.optimizer.warmup_steps = 100
  return config
