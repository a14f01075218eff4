r"""ListOps of the Long Range Arena: nested lists of 501 to 1,999 tokens.

  python scripts/prepare_datasets.py listops
  python -m experiments.train \
      --config=experiments/configs/lra/listops.py:lru --workdir=runs/listops

The first command generates the data by the published rules. Prepare
`listops_release` and add `--config.data.source=release` to train on the data of
the Long Range Arena, on which the published numbers were measured. With
`--config.data.buckets=8` a batch has rows of similar lengths, and so little
padding; such batches are not quite random.

The settings of `:lru`, of the rows of its ablation such as `:lru_polar`, of
`:s5`, `:s4`, `:s4d`, `:min_gru`, `:mamba` and of any other layer are in
`settings.py`, which lists the differences from the papers. The LRU paper does
not print its learning rate: choose it on the validation part.

  python -m experiments.sweep \
      --configs=experiments/configs/lra/listops.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3 \
      --workdir=runs/listops_rates

Measured: only that it trains. 200 steps of `:lru` with two rows a step
(`experiments/results/lra/listops/lru_200_steps`) took 146 s on two CPU cores,
0.75 s a step beside other programs, and waited 0.0 % of the time for data. The
loss fell from 2.35 (mean of the first eight that were logged) to 2.27 nats;
16.4 % of the test answers are right, and 16.7 % are the commonest digit. Full
runs are planned in `experiments/results/plans/lra.md`: 0.3 to 0.4 hours on one
H200, below 0.1 on eight v5e.
"""

from experiments.configs import default
from experiments.configs.lra import accuracies
from experiments.configs.lra import settings

PUBLISHED = accuracies.of_task('listops')


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
