r"""Retrieval: does one of two papers cite the other? 4,000 characters of each.

  python scripts/prepare_datasets.py aan --manual_dir=DIRECTORY
  python -m experiments.train \
      --config=experiments/configs/lra/retrieval.py:lru \
      --workdir=runs/retrieval

The task "Retrieval" of the Long Range Arena: pairs of papers of the ACL
Anthology Network. DIRECTORY holds `new_aan_pairs.train.tsv`, `.eval.tsv` and
`.test.tsv` of its release. The validation split is that of the release and
chooses the checkpoint.

The same blocks read both papers, and the head of S5 compares their features,
see `models.PairClassifier`. The paper of the LRU does not say which head it
has. A batch of 64 pairs has 128 rows.

The settings of `:lru`, of the rows of its ablation such as `:lru_polar`, of
`:s5`, `:s4`, `:s4d`, `:min_gru`, `:mamba` and of any other layer are in
`settings.py`, which lists the differences from the papers. The LRU paper does
not print its learning rate: choose it on the validation part.

  python -m experiments.sweep \
      --configs=experiments/configs/lra/retrieval.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3 \
      --workdir=runs/retrieval_rates

The published accuracies and their sources are in `accuracies.py`.
Measured: nothing yet.
"""

from experiments.configs import default
from experiments.configs.lra import accuracies
from experiments.configs.lra import settings

PUBLISHED = accuracies.of_task('retrieval')


def get_config(layer: str = 'lru'):
  """Returns the config."""
  config = default.get_config()
  default.use_data(config, 'aan')
  settings.use(config, 'retrieval', layer)
  config.log_every = 50
  config.eval_every = 2500
  config.save_every = 2500
  config.keep = 1
  config.smoke_overrides.update(dict(
      total_steps=100, batch_size=16, log_every=10, eval_every=50,
      save_every=50, keep=3,
      model=dict(num_layers=1, features=16),
      data=dict(sequence_length=64),
      optimizer=dict(learning_rate=1e-2, warmup_steps=5),
  ))
  return config
