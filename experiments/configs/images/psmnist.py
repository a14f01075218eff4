r"""psMNIST: 784 pixels, read one by one in an order that was drawn once.

  python scripts/prepare_datasets.py smnist --manual_dir=DIRECTORY
  python -m experiments.train \
      --config=experiments/configs/images/psmnist.py:lru --workdir=runs/psmnist

Everything but the order is as in `smnist.py`: the settings are ours, and the
training is short. There is more than one permutation under this name. Here it
is that of the code of S4, which reverses the bits of the numbers of the pixels
(`bit_reversal`). `:lmu` and `:parallel_lmu` have the sizes of the published
models, and read the other permutation, which is drawn with the seed 92916.

Published accuracies on the test part: S4 98.70 %, LMU 97.15 %, by larger models
or longer training. None is known for the LRU. Measured: nothing yet.
"""

from experiments.configs import default
from experiments.configs.images import smnist
from rnnzoo import models

PUBLISHED = [
    dict(
        layer='s4', metric='accuracy', value=0.987, error=None, split='test',
        source='https://arxiv.org/abs/2111.00396',
    ),
    dict(
        layer='lmu', metric='accuracy', value=0.9715, error=None, split='test',
        source='https://github.com/nengo/keras-lmu',
    ),
]
PRESETS = dict(lmu='lmu_psmnist', parallel_lmu='parallel_lmu_psmnist')


def get_config(layer: str = 'lru'):
  """Returns the config of `smnist.py` with permuted pixels."""
  config = smnist.get_config(layer)
  config.data.permutation = 'bit_reversal'
  if layer in PRESETS:
    config.model = default.model(models.PRESETS[PRESETS[layer]])
    config.data.permutation = 'seed_92916'
    config.smoke_overrides.model.update(
        features=16, layer_options=dict(order=16)
    )
  # Rows cannot be permuted.
  config.smoke_overrides.data.sequence = 'pixels'
  return config
