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
see `models.PairClassifier`. A batch of 64 pairs has 128 rows.

`:lru` is the LRU of its paper (https://arxiv.org/abs/2303.06349, table 9):
100,000 steps of 64 pairs. The paper does not print the learning rate, which was
one of a grid of powers of 2; 0.001 is ours. The warm-up starts at 0, there at
1e-7. Its head is not known. Other layers stand in the blocks of that LRU,
unless there is a preset such as `s5_retrieval`.

A search for the learning rate:

  python -m experiments.sweep \
      --configs=experiments/configs/lra/retrieval.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3 \
      --workdir=runs/retrieval_rates

`PUBLISHED` has test accuracies from table 3 of the LRU paper: its own, its runs
of S4D and S5, and what it quotes from the papers of S4, S4D and S5. Measured
here: nothing yet.
"""

from experiments.configs import default
from rnnzoo import models

_TABLE = 'https://arxiv.org/abs/2303.06349, table 3'
PUBLISHED = [
    dict(
        layer=layer, metric='accuracy', value=value, error=error, split='test',
        source=_TABLE + source,
    )
    for layer, value, error, source in (
        ('lru', 0.899, 0.001, ''),
        ('s4d', 0.895, 0.000, ', their run'),
        ('s5', 0.889, 0.000, ', their run'),
        ('s4', 0.909, None, ', quoted'),
        ('s4d', 0.895, None, ', quoted'),
        ('s5', 0.914, None, ', quoted'),
    )
]


def get_config(layer: str = 'lru'):
  """Returns the config."""
  config = default.get_config()
  default.use_data(config, 'aan')

  lru = models.PRESETS['lru_retrieval']
  config.model = default.model(models.PRESETS.get(
      f'{layer}_retrieval', lru.replace(layer=layer, layer_options={})
  ))
  config.total_steps = 100_000
  config.batch_size = 64
  config.optimizer.learning_rate = 1e-3
  config.optimizer.end_learning_rate = 1e-7
  config.optimizer.warmup_steps = 10_000
  config.optimizer.weight_decay = 0.05
  config.optimizer.recurrent_rate_factor = 0.5
  config.optimizer.clip = 0.0
  config.optimizer.options = dict(b2=0.999)

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
