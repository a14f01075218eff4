r"""Text: is a film review positive? Its first 4,096 characters decide.

  python scripts/prepare_datasets.py imdb --manual_dir=DIRECTORY
  python -m experiments.train \
      --config=experiments/configs/lra/text.py:lru --workdir=runs/text

The task "Text" of the Long Range Arena as S4 and S5 read it: characters that
the training reviews have at least 15 times, and a token at the end. DIRECTORY
holds `aclImdb_v1.tar.gz`.

What chooses the checkpoint: S4 and S5 take the test reviews. Here it is a tenth
of the 25,000 training reviews, so 22,500 train.
`--config.data.validation=test` trains on all 25,000 and chooses by the test
reviews, as they do. What the LRU paper does is not known.

The settings of `:lru`, of the rows of its ablation such as `:lru_polar`, of
`:s5`, `:s4`, `:s4d`, `:min_gru`, `:mamba` and of any other layer are in
`settings.py`, which lists the differences from the papers. The LRU paper does
not print its learning rate: choose it on the validation part.

  python -m experiments.sweep \
      --configs=experiments/configs/lra/text.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3 \
      --workdir=runs/text_rates

The published accuracies and their sources are in `accuracies.py`. Those of the
papers of S4, S4D and S5 are the best over the test reviews.
Measured: nothing yet.
"""

from experiments.configs import default
from experiments.configs.lra import accuracies
from experiments.configs.lra import settings

PUBLISHED = accuracies.of_task('text')


def get_config(layer: str = 'lru'):
  """Returns the config."""
  config = default.get_config()
  default.use_data(config, 'imdb')
  settings.use(config, 'text', layer)
  config.log_every = 50
  config.eval_every = 1000
  config.save_every = 1000
  config.keep = 1
  config.smoke_overrides.update(dict(
      total_steps=60, batch_size=16, log_every=10, eval_every=30,
      save_every=30, keep=3,
      model=dict(num_layers=1, features=16),
      data=dict(sequence_length=64),
      optimizer=dict(learning_rate=1e-2, warmup_steps=5),
  ))
  return config
