r"""Plain words of Wikipedia: text8 with its standard splits.

  curl -O https://mattmahoney.net/dc/text8.zip
  python -m experiments.train --config=experiments/configs/language/text8.py \
      --config.data.path=text8.zip --workdir=runs/text8

The setting of `enwik8.py`, with the 27 characters of text8: letters and spaces.
The first 90 million characters train, the next 5 million choose the checkpoint,
the last 5 million are the test, in bits per character (`test_bits_per_token`).
It is a run for a GPU; nothing has been measured, and no published number of
these layers in this setting is known.
"""

from experiments.configs import default
from experiments.configs.language import enwik8

PUBLISHED = []


def get_config(layer: str = 'min_gru'):
  """Returns the config: that of enwik8 with other data."""
  return default.use_data(enwik8.get_config(layer), 'text8')
