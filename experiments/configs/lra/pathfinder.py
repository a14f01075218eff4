r"""Pathfinder of the Long Range Arena: 32 x 32 pixels, read one by one.

  python scripts/prepare_datasets.py pathfinder
  python -m experiments.train \
      --config=experiments/configs/lra/pathfinder.py:lru \
      --workdir=runs/pathfinder

Two dots in an image are the ends of one dashed contour, or they are not. The
first command generates 200,000 images by the published rules; with
`pathfinder_release` and `--config.data.source=release` they are those of the
Long Range Arena, on which the published numbers were measured.

The settings of `:lru`, of the rows of its ablation such as `:lru_polar`, of
`:s5`, `:s4`, `:s4d`, `:min_gru`, `:mamba` and of any other layer are in
`settings.py`, which says what they differ in from the papers. The LRU paper
does not print the learning rate: choose it on the validation part.

  python -m experiments.sweep \
      --configs=experiments/configs/lra/pathfinder.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3 \
      --workdir=runs/pathfinder_rates
"""

from experiments.configs import default
from experiments.configs.lra import ablation
from experiments.configs.lra import settings

_LRU = 'https://arxiv.org/abs/2303.06349, table 3'

# The errors are standard errors of three seeds.
PUBLISHED = [
    ablation.accuracy('lru', 0.951, 0.001, _LRU),
    ablation.accuracy('s4', 0.942, None, f'{_LRU}: number of the S4 papers'),
    ablation.accuracy('s4d', 0.942, 0.003, f'{_LRU}: trained there'),
    ablation.accuracy('s4d', 0.931, None, f'{_LRU}: number of the S4D paper'),
    ablation.accuracy('s5', 0.957, 0.001, f'{_LRU}: trained there'),
    ablation.accuracy('s5', 0.953, None, f'{_LRU}: number of the S5 paper'),
    ablation.accuracy(
        'attention', 0.7140, None,
        'https://github.com/google-research/long-range-arena',
    ),
    *ablation.numbers('pathfinder'),
]


def get_config(layer: str = 'lru'):
  """Returns the config."""
  config = default.get_config()
  default.use_data(config, 'pathfinder')
  settings.use(config, 'pathfinder', layer)
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
