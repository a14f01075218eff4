r"""MAD: recall among noise.

  python -m experiments.train \
      --config=experiments/configs/synthetic/mad_noisy_recall.py \
      --workdir=runs/mad_noisy_recall

`mad.py` has the protocol and all changes of difficulty. A fifth of the pairs is
noise from 16 ids of its own.

Expected: the scores in `PUBLISHED`, see `mad.py`. Measured: nothing yet.
"""

from experiments.configs.synthetic import mad

PUBLISHED = mad.scores(100, 100, 100, 100, 100, 93.0, 100)


def get_config(layer: str = 'mamba'):
  """Returns the config."""
  config = mad.get_config(layer, 'noisy_in_context_recall')
  config.smoke_overrides.data.vocab_size = 20
  return config
