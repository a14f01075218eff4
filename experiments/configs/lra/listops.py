r"""ListOps of the Long Range Arena: nested lists of 501 to 1,999 tokens.

  python scripts/prepare_datasets.py listops
  python -m experiments.train \
      --config=experiments/configs/lra/listops.py:lru --workdir=runs/listops

The first command generates the data by the published rules; with
`listops_release` and `--config.data.source=release` it is the data of the Long
Range Arena. With `--config.data.buckets=8` rows of like lengths come together,
so that little is padded; the batches are then not quite at random.

The settings of `:lru`, of the rows of its ablation such as `:lru_polar`, of
`:s5`, `:s4`, `:s4d`, `:min_gru`, `:mamba` and of any other layer are in
`settings.py`, which says what they differ in from the papers. The LRU paper
does not print the learning rate: choose it on the validation part.

  python -m experiments.sweep \
      --configs=experiments/configs/lra/listops.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3 \
      --workdir=runs/listops_rates
"""

from experiments.configs import default
from experiments.configs.lra import ablation
from experiments.configs.lra import settings

_LRU = 'https://arxiv.org/abs/2303.06349, table 3'

# The errors are standard errors of three seeds.
PUBLISHED = [
    ablation.accuracy('lru', 0.602, 0.008, _LRU),
    ablation.accuracy('s4', 0.596, None, f'{_LRU}: number of the S4 papers'),
    ablation.accuracy('s4d', 0.602, 0.003, f'{_LRU}: trained there'),
    ablation.accuracy('s4d', 0.605, None, f'{_LRU}: number of the S4D paper'),
    ablation.accuracy('s5', 0.585, 0.003, f'{_LRU}: trained there'),
    ablation.accuracy('s5', 0.622, None, f'{_LRU}: number of the S5 paper'),
    ablation.accuracy(
        'attention', 0.3637, None,
        'https://github.com/google-research/long-range-arena: Transformer',
    ),
    *ablation.numbers('listops'),
]


def get_config(layer: str = 'lru'):
  """Returns the config."""
  config = default.get_config()
  default.use_data(config, 'listops')
  settings.use(config, 'listops', layer)
  config.log_every = 50
  config.eval_every = 2000
  config.save_every = 2000
  config.smoke_overrides.update(dict(
      total_steps=100, batch_size=32, log_every=10, eval_every=50,
      save_every=50, model=dict(num_layers=1, features=32),
      data=dict(max_length=24),
      optimizer=dict(learning_rate=1e-2, warmup_steps=10),
  ))
  return config
