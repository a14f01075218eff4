r"""Path-X of the Long Range Arena: 128 x 128 pixels, read one by one.

  python scripts/prepare_datasets.py pathfinder --size=128
  python -m experiments.train \
      --config=experiments/configs/lra/pathx.py:lru \
      --workdir=runs/pathx

Two dots in an image are the ends of one dashed contour, or they are not. The
first command generates 200,000 images by the published rules. Prepare
`pathfinder_release` and add `--config.data.source=release` to train on the
images of the Long Range Arena, on which the published numbers were measured.

`:lru` needs two things to learn this task, as its paper reports: gamma, and
small initial phases, up to pi / 10. All other rows of the ablation stay at
chance.

The settings of `:lru`, of the rows of its ablation such as `:lru_polar`, of
`:s5`, `:s4`, `:s4d`, `:min_gru`, `:mamba` and of any other layer are in
`settings.py`, which lists the differences from the papers. The LRU paper does
not print its learning rate: choose it on the validation part.

  python -m experiments.sweep \
      --configs=experiments/configs/lra/pathx.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3 \
      --workdir=runs/pathx_rates

Measured: nothing yet.
"""

from experiments.configs import default
from experiments.configs.lra import accuracies
from experiments.configs.lra import settings

PUBLISHED = accuracies.of_task('pathx')


def get_config(layer: str = 'lru'):
  """Returns the config."""
  config = default.get_config()
  default.use_data(config, 'pathfinder')
  config.data.size = 128
  settings.use(config, 'pathx', layer)
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
