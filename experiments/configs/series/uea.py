r"""Problems of the UEA archive of time series, and what their configs share.

  python -m experiments.train \
      --config=experiments/configs/series/uea.py:lru --workdir=runs/vowels

This file trains on JapaneseVowels, with the official split; `pip install
--no-deps aeon` brings its files. `--config.data.problem=NAME` chooses another
problem; `rnnzoo/data/series/uea.py` says where its files may be. Write `:s5`,
`:mamba` or another layer after the file.

`scp1.py`, `scp2.py` and `ethanol.py` are three problems that the papers on
Log-NCDE (https://arxiv.org/abs/2402.18512) and LinOSS
(https://arxiv.org/abs/2410.03943) report. Their protocol: five random splits
into 70, 15 and 15 %; the time is an input and nothing is standardised; batches
of 32; Adam at a constant rate. A block is a batch norm, the layer, GELU,
dropout, a GLU and dropout, beside a residual connection; a linear map of the
mean over time gives the class. The checkpoint with the best validation accuracy
is tested.

Different here, and ours:

- Two blocks of width 64 and states of size 64, in Mamba 16 for each of its 128
  channels. The papers choose among 2, 4 and 6 blocks, widths of 16, 64 and 128
  and states of 16, 64 and 256, and whether the time is an input.
- At most 3,000 steps, validation every 100; the papers train for up to 100,000
  steps and validate every 1,000. Both stop after 10 validations without a gain.
- The papers choose the learning rate among 1e-3, 1e-4 and 1e-5. Here the best
  one of these on the validation part of the first split is that of all splits.
- The validation and test parts are those of the papers. The training parts have
  only about three quarters of their series: the files hold no more.
- Batch norms have a scale and a bias. There is dropout before the first block,
  and a batch norm after the last one. Layers with a gate of their own, such as
  Mamba, have no GLU.
- The initial values of the LRU and of S5 are the defaults of the layers.

The seed of a run chooses the split too: 0 is 2345, 1 is 3456, and so on. One
command chooses the rate and trains all five:

  python -m experiments.sweep --seeds=5 --workdir=runs/uea \
      --configs=experiments/configs/series/scp1.py:lru,s5,mamba \
      --grid=data.data_dir=FOLDER \
      --grid=optimizer.learning_rate=1e-3,1e-4,1e-5 \
      --select=optimizer.learning_rate

The published numbers are second-hand: they were not compared with the table of
the LinOSS paper itself. The means over six problems that it prints agree with
them. `error` is the standard error, as for our results: the published standard
deviation over five seeds, divided by the root of 5.

Measured: seven layers on one to three splits of one problem, in `scp1.py`.
"""

import math

from experiments.configs import default
from rnnzoo import models

PUBLISHED = []  # None known for this protocol.
# Options of the layers.
OPTIONS = dict(
    d_linoss=dict(state_features=64),
    linoss=dict(state_features=64),
    lru=dict(state_features=64),
    mamba=dict(state_features=16),
    mamba3=dict(state_features=64),
    s5=dict(state_features=64),
)
# These layers have a gate of their own.
GATES = dict(
    gated_delta_product='none', kda='none', mamba='none', mamba3='none'
)
# The layers whose numbers LinOSS reports; its own is the implicit form.
_LAYERS = ('lru', 's5', 'mamba', 'linoss')


def published(*percent: tuple[float, float]) -> list[dict]:
  """Returns the published accuracies on one problem, of `_LAYERS`.

  Args:
    *percent: The mean and the standard deviation over five seeds.
  """
  return [
      dict(
          layer=layer, metric='accuracy', value=round(mean / 100, 4),
          error=round(deviation / 100 / math.sqrt(5), 4), split='test',
          source='https://arxiv.org/abs/2410.03943, second-hand, five seeds, '
          f'standard deviation {deviation} %',
      )
      for layer, (mean, deviation) in zip(_LAYERS, percent, strict=True)
  ]


def get_config(layer: str = 'lru', problem: str = 'JapaneseVowels'):
  """Returns the config of a problem.

  Args:
    layer: The layer of both blocks.
    problem: The name of the problem in the archive.
  """
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=64, norm='batch',
      gate=GATES.get(layer, 'glu'), mlp='none', dropout=0.05, pooling='mean',
      layer_options=OPTIONS.get(layer, {}),
  ))
  default.use_data(config, 'uea')
  config.data.problem = problem
  config.total_steps = 3000
  config.batch_size = 32
  config.log_every = 50
  config.eval_every = 100
  config.save_every = 100
  config.keep = 1
  config.patience = 10
  config.optimizer.name = 'adam'
  config.optimizer.schedule = 'constant'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 0
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip = 0.0
  config.optimizer.options = dict(b2=0.999)
  config.smoke_overrides.update(dict(
      total_steps=60, batch_size=16, log_every=10, eval_every=30,
      save_every=30, keep=3, model=dict(num_layers=1, features=16),
      optimizer=dict(learning_rate=1e-2),
  ))
  return config
