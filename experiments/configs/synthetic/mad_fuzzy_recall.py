r"""MAD: recall where keys and values have one to three tokens.

  python -m experiments.train \
      --config=experiments/configs/synthetic/mad_fuzzy_recall.py \
      --workdir=runs/mad_fuzzy_recall

`mad.py` has the protocol and all changes of difficulty.

Expected: the scores in `PUBLISHED`, see `mad.py`. Measured: nothing yet.
"""

from experiments.configs.synthetic import mad

PUBLISHED = mad.scores(51.2, 39.0, 47.6, 55.5, 32.7, 13.6, 48.6)


def get_config(layer: str = 'mamba'):
  """Returns the config."""
  config = mad.get_config(layer, 'fuzzy_in_context_recall')
  config.smoke_overrides.total_steps = 150
  config.smoke_overrides.model.features = 32
  config.smoke_overrides.data.update(sequence_length=24, vocab_size=8)
  return config
