r"""Retrieval: does one of two papers cite the other? 4,000 characters of each.

  scripts/prepare_datasets.py aan --manual_dir=DIRECTORY
  python -m experiments.train \
      --config=experiments/configs/lra/retrieval.py:lru \
      --workdir=runs/retrieval

The task "Retrieval" of the Long Range Arena: pairs of papers of the ACL
Anthology Network. DIRECTORY holds `new_aan_pairs.train.tsv`, `.eval.tsv` and
`.test.tsv` of its release. The validation split is that of the release and
chooses the checkpoint.

The same blocks read both papers, and the head of S5 compares their features,
see `models.PairClassifier`. A batch of 64 pairs has 128 rows. The head of the
LRU is not known.

The settings of `:lru`, of the rows of its ablation such as `:lru_polar`, of
`:s5`, `:s4`, `:s4d`, `:min_gru`, `:mamba` and of any other layer are in
`settings.py`, which says what they differ in from the papers. The LRU paper
does not print the learning rate: choose it on the validation part.

  python -m experiments.sweep \
      --configs=experiments/configs/lra/retrieval.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3 \
      --workdir=runs/retrieval_rates

`PUBLISHED` has test accuracies of the LRU paper: its own, its ablation, its
runs of S4D and S5, and what it quotes from the papers of S4, S4D and S5.
Measured here: nothing yet.
"""

from experiments.configs import default
from experiments.configs.lra import ablation
from experiments.configs.lra import settings

_TABLE = 'https://arxiv.org/abs/2303.06349, table 3'
PUBLISHED = [
    ablation.accuracy(layer, value, error, _TABLE + source)
    for layer, value, error, source in (
        ('lru', 0.899, 0.001, ''),
        ('s4d', 0.895, 0.000, ', their run'),
        ('s5', 0.889, 0.000, ', their run'),
        ('s4', 0.909, None, ', quoted'),
        ('s4d', 0.895, None, ', quoted'),
        ('s5', 0.914, None, ', quoted'),
    )
] + ablation.numbers('retrieval')


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
