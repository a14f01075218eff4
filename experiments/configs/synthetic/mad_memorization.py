r"""MAD: learn the values of 127 keys by heart.

  python -m experiments.train \
      --config=experiments/configs/synthetic/mad_memorization.py \
      --workdir=runs/mad_memorization

`mad.py` has the protocol and all changes of difficulty. 200 epochs of 256
examples are 400 steps.

Expected: the scores in `PUBLISHED`, see `mad.py`. Measured: nothing yet.
"""

from experiments.configs.synthetic import mad

PUBLISHED = mad.scores(42.0, 82.5, 79.8, 40.8, 81.7, 91.3, 84.7)


def get_config(layer: str = 'mamba'):
  """Returns the config."""
  config = mad.get_config(layer, 'memorization')
  config.total_steps = 400
  config.log_every = 10
  config.eval_every = 50
  config.save_every = 50
  config.smoke_overrides.data.vocab_size = 16
  return config
