r"""ETTh1: the next hours of seven columns of an electricity transformer.

  python -m experiments.train \
      --config=experiments/configs/forecasting/etth1.py:min_gru \
      --config.data.path=FOLDER --config.data.horizon=96 --workdir=runs/etth1

FOLDER holds ETTh1.csv, see rnnzoo/data/series/ett.py. Write `:lru`, `:mamba` or
another layer after the file, or `:dlinear` for DLinear
(https://arxiv.org/abs/2205.13504), which has no state. Horizons of the papers
are 96, 192, 336 and 720 hours; a model reads the last 336 hours.

DLinear is trained nearly as by its authors: PyTorch's initial values, Adam,
batches of 32, a rate of 0.005 that is constant for about 1.5 epochs and halves
in each one after them (an epoch has 237 to 256 steps), ten epochs at most. A
run ends after three validations without a gain, and the best checkpoint is
tested. On ETTh2 the authors' rate is 0.05.

A layer reads each column by itself, a day as one vector, after the mean of
the window was subtracted and its deviation divided by. Both are put back into
the forecast. `--config.model.window_norm`, `--config.model.patch` and
`--config.model.separate_columns` change this.
`--config.model.distribution=quantile` or `gaussian` forecasts a band, too.

Results (`experiments/results/forecasting`), squared and absolute errors on the
test part, seed 0, and DLinear's published squared error (second-hand):

  horizon              96            192           336           720
  naive           1.294 0.713   1.325 0.733   1.330 0.746   1.335 0.755
  seasonal naive  0.512 0.433   0.581 0.469   0.650 0.501   0.655 0.514
  DLinear         0.388 0.412   0.417 0.426   0.486 0.481   0.486 0.500
  published       0.375         0.405         0.439         0.472
  minGRU          0.378 0.404
  LRU             0.381 0.403
  Mamba           0.389 0.409
  Aaren           0.381 0.403

At a rate of 0.005 one seed of DLinear is up to 11 % above the published number.
With three seeds, the mean squared error on the test part with its standard
error:

  horizon                96              192             336             720
  rate 0.001      0.376 +- 0.001  0.410 +- 0.001  0.448 +- 0.006  0.499 +- 0.006
  rate 0.05       0.373 +- 0.001  0.417 +- 0.009  0.440 +- 0.002  0.496 +- 0.019
  published       0.375           0.405           0.439           0.472

Validation prefers 0.001 at 96 and 336 hours and 0.05 at 192, by less than 1 %,
and so the mean is 0.1, 2.8 and 1.9 % above the published number there; at 720
hours both rates are 5 to 6 % above it. Test errors were seen before this was
run. The layers have been trained at 96 hours only, with settings that were not
tuned.

  python -m experiments.sweep \
      --configs=experiments/configs/forecasting/etth1.py:dlinear \
      --grid=data.horizon=96,192,336,720 --grid=data.path=FOLDER --seeds=3 \
      --grid=optimizer.learning_rate=0.05,0.001 --grid=tensorboard=False \
      --workdir=runs/dlinear
"""

from experiments.configs import default
from rnnzoo import models

HORIZONS = (96, 192, 336, 720)


def published(*errors: float) -> list[dict]:
  """Returns the published squared errors of DLinear, one for each horizon."""
  return [
      dict(
          layer='dlinear', metric='mse', value=error, split='test',
          source='https://arxiv.org/abs/2205.13504, table 2, second-hand',
          where={} if horizon == HORIZONS[0] else {'data.horizon': horizon},
      )
      for horizon, error in zip(HORIZONS, errors, strict=True)
  ]


PUBLISHED = published(0.375, 0.405, 0.439, 0.472)


def get_config(layer: str = 'min_gru', file: str = 'ETTh1'):
  """Returns the config.

  Args:
    layer: The layer, or `dlinear`.
    file: The file of the data set.
  """
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=1, features=32, mlp='none', pooling='last',
      patch=24, dropout=0.1,
  ))
  default.use_data(config, 'ett')
  config.data.file = file
  config.data.horizon = HORIZONS[0]
  config.total_steps = 2560
  config.batch_size = 32
  config.log_every = 64
  config.eval_every = 256
  config.save_every = 256
  config.keep = 1
  config.patience = 3
  config.optimizer.name = 'adam'
  config.optimizer.schedule = 'exponential'
  config.optimizer.learning_rate = 5e-3 if layer == 'dlinear' else 3e-3
  # Another rate changes the whole schedule: constant for 1.5 epochs, then
  # halved in each. That is the authors' rate in the middle of each epoch.
  rate = config.optimizer.get_ref('learning_rate')
  config.optimizer.start_learning_rate = rate * 1.0
  config.optimizer.warmup_steps = 384
  config.optimizer.end_learning_rate = rate * 2**-8.5
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip = 0.0
  config.optimizer.options = dict(b2=0.999)
  if layer == 'dlinear':
    config.model.window_norm = 'none'
    config.model.dropout = 0.0
  config.smoke_overrides.update(dict(
      total_steps=60, batch_size=64, log_every=10, eval_every=30,
      save_every=30, keep=3, model=dict(num_layers=1, features=16),
      data=dict(sequence_length=48, horizon=12),
      optimizer=dict(
          learning_rate=1e-2, end_learning_rate=1e-3, warmup_steps=0
      ),
  ))
  return config
