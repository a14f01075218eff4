r"""Path-X of the Long Range Arena: 128 x 128 pixels, read one by one.

  python scripts/prepare_datasets.py pathfinder --size=128
  python -m experiments.train \
      --config=experiments/configs/lra/pathx.py:lru \
      --workdir=runs/pathx

Two dots in an image are the ends of one dashed contour, or they are not. The
first command generates 200,000 images by the published rules; with
`pathfinder_release` for `pathfinder` and `--config.data.source=release` they
are those of the Long Range Arena, on which the published numbers were measured.
The model and the training are those of table 9 of the paper on LRU. Its small
first phases, up to pi / 10, are what lets LRU learn this task. The paper does
not print the learning rate: choose it on the validation part.

  python -m experiments.sweep \
      --configs=experiments/configs/lra/pathx.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3 --workdir=runs/rates

Another layer after the file takes the place of LRU in the same model.
"""

from experiments.configs import default
from rnnzoo import models

_LRU = 'https://arxiv.org/abs/2303.06349, table 3'


def _accuracy(layer, value, error, source):
  return dict(
      layer=layer, metric='accuracy', value=value, error=error, split='test',
      source=source,
  )


# The errors are standard errors of three seeds.
PUBLISHED = [
    _accuracy('lru', 0.942, 0.004, _LRU),
    _accuracy('s4', 0.964, None, f'{_LRU}: number of the S4 papers'),
    _accuracy('s4d', 0.975, 0.0, f'{_LRU}: trained there'),
    _accuracy('s4d', 0.919, None, f'{_LRU}: number of the S4D paper'),
    _accuracy('s5', 0.960, 0.001, f'{_LRU}: trained there'),
    _accuracy('s5', 0.986, None, f'{_LRU}: number of the S5 paper'),
]


def get_config(layer: str = 'lru'):
  """Returns the config: six two-way blocks of width 128, 250,000 steps."""
  config = default.get_config()
  default.use_data(config, 'pathfinder')
  config.data.size = 128
  # The model and the optimiser.
  config.model = default.model(models.PRESETS['lru_pathx'])
  default.use_layer(config, layer)
  config.total_steps = 250_000
  config.batch_size = 32
  config.optimizer.update(dict(
      name='adamw', options={}, learning_rate=1e-3, end_learning_rate=1e-7,
      warmup_steps=25_000, weight_decay=0.05, recurrent_rate_factor=0.25,
      clip=0.0,
  ))
  config.log_every = 100
  config.eval_every = 2500
  config.save_every = 2500
  config.smoke_overrides.update(dict(
      total_steps=100, batch_size=32, log_every=10, eval_every=50,
      save_every=50, model=dict(num_layers=1, features=32),
      data=dict(size=16),
      optimizer=dict(learning_rate=1e-2, warmup_steps=10),
  ))
  return config
