r"""Associative recall (MQAR) in the hardest setting of xLSTM.

  python -m experiments.train \
      --config=experiments/configs/synthetic/mqar_2048.py:mlstm_block \
      --workdir=runs/mqar_2048

The setting of https://arxiv.org/abs/2405.04517, appendix B.1.2: 2048 tokens, a
vocabulary of 8192, two blocks, 64 epochs of 100,000 examples (266,667 steps of
24; here examples never repeat), 3000 test examples, AdamW with weight decay
0.1, a tenth of the steps warm-up. Its learning rates are searched. Batches of
shorter contexts are larger: 512 for 64 and 128 tokens, 256 for 256, 128 for
756, 96 for 1024. The width and the number of pairs are ours
(`--config.model.features`, `--config.data.num_pairs`); this is the largest
number that `data.sequence_length=1024` allows too. `mqar.py` has the settings
of Zoology.

Expected: none known as a number (the paper has a figure). Measured: nothing
yet.
"""

from experiments.configs import default
from rnnzoo import models

PUBLISHED = []
OPTIONS = dict(attention=dict(window=2048))


def get_config(layer: str = 'mlstm_block'):
  """Returns the config."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=128, norm='layer', mlp='none',
      layer_options=OPTIONS.get(layer, {}),
  ))
  default.use_data(config, 'mqar')
  config.data.sequence_length = 2048
  config.data.num_pairs = 256
  config.data.eval_examples = 3000
  config.total_steps = 266_667
  config.batch_size = 24
  config.log_every = 100
  config.eval_every = 5000
  config.save_every = 5000
  config.optimizer.learning_rate = 1e-3
  config.optimizer.end_learning_rate = 1e-5
  config.optimizer.warmup_steps = 26_667
  config.optimizer.weight_decay = 0.1
  config.optimizer.options = dict(b2=0.999)
  config.smoke_overrides.update(dict(
      total_steps=100, batch_size=32, log_every=10, eval_every=50,
      save_every=50, model=dict(num_layers=1),
      data=dict(
          sequence_length=8, num_pairs=2, vocab_size=12, eval_examples=64
      ),
      optimizer=dict(learning_rate=1e-2, warmup_steps=10),
  ))
  return config
