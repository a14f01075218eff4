r"""Formal languages: train on strings of up to 40 tokens, test on 40 to 256.

  python -m experiments.train \
      --config=experiments/configs/synthetic/formal_language.py:min_lstm \
      --config.data.language=cycle_navigation --workdir=runs/cycle

Sources: version 3 of "Were RNNs All We Needed?" (Feng et al. 2025,
https://arxiv.org/abs/2410.01201v3) and xLSTM (Beck et al. 2024,
https://arxiv.org/abs/2405.04517); the languages are defined in
`rnnzoo/data/synthetic/formal_language.py`. `test_256` is the papers' test.

The setting is that of minRNN's code for these tasks: two layers of width 256
with expansion 1, no convolution, no MLP, batches of 128, 500,000 steps of AdamW
at a constant 3e-4. For `:slstm_block` it is that of xLSTM's code for parity:
two blocks of width 64, batches of 256, 1e-3 after 2,000 steps and falling to
1e-6 after 20,000 steps (100,000 in the paper, with rates from 1e-4 to 1e-2).

Expected: xLSTM says that parity is solved by models that mix memory (sLSTM,
LSTM) and by no other; the numbers of both papers are in figures and tables that
were not at hand, so none is known here.
"""

from experiments.configs import default
from rnnzoo import models

# Both papers have tables; their numbers were not at hand.
PUBLISHED = []
# Options of the layers.
OPTIONS = dict(
    min_gru=dict(learn_initial_state=True),
    min_lstm=dict(normalize=False, learn_initial_state=True),
)


def get_config(layer: str = 'min_lstm'):
  """Returns the config: two layers of width 256, or xLSTM's for sLSTM."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=256, mlp='none',
      layer_options=OPTIONS.get(layer, {}),
  ))
  default.use_data(config, 'formal_language')
  config.data.language = 'parity'
  config.data.min_length = 1
  config.data.max_length = 40
  config.data.test_lengths = (256,)
  config.data.test_examples = 1024
  config.total_steps = 500_000
  config.batch_size = 128
  config.log_every = 100
  config.eval_every = 5000
  config.save_every = 5000
  config.keep = 1
  config.optimizer.learning_rate = 3e-4
  config.optimizer.schedule = 'constant'
  config.optimizer.warmup_steps = 0
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip = 0.0
  config.optimizer.options = dict(b2=0.999)
  if layer == 'slstm_block':
    config.model = default.model(models.PRESETS['slstm_parity'])
    config.data.min_length = 2  # xLSTM's shortest have 3, with the question.
    config.total_steps = 20_000
    config.batch_size = 256
    config.eval_every = config.save_every = 1000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.end_learning_rate = 1e-6
    config.optimizer.schedule = 'cosine'
    config.optimizer.warmup_steps = 2000
    config.optimizer.weight_decay = 0.1
  config.smoke_overrides.update(dict(
      total_steps=40, batch_size=32, log_every=2, eval_every=40, save_every=40,
      model=dict(num_layers=1, features=32),
      data=dict(
          language='bucket_sort', min_length=1, max_length=4, eval_examples=64,
          test_lengths=(8,), test_examples=16,
      ),
      optimizer=dict(learning_rate=1e-2, warmup_steps=5),
  ))
  return config
