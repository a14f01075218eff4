r"""Needles in a haystack: RULER's synthetic forms, as bytes.

  python -m experiments.train \
      --config=experiments/configs/long_context/needle.py:mamba2 \
      --config.data.form=multikey_2 --workdir=runs/needle

`rnnzoo/data/synthetic/needle.py` has the eight forms of RULER
(https://arxiv.org/abs/2404.06654) and says what differs. RULER tests language
models of billions of parameters at 4,096 to 131,072 tokens; here a small model
learns one form alone, from texts of 1,024 bytes, and is tested at up to 16
times that: `test_4096_accuracy` is the accuracy per byte of the values at 4,096
bytes. So no published number compares.

Chance is 10 % for a digit. Nothing has been measured yet.
"""

from experiments.configs import default
from experiments.configs.long_context import passkey

PUBLISHED = []


def get_config(layer: str = 'min_gru'):
  """Returns the config: that of the passkey with other data."""
  config = default.use_data(passkey.get_config(layer), 'needle')
  config.smoke_overrides.data.sequence_length = 600
  return config
