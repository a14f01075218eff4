r"""EthanolConcentration: four classes of 2 channels, 1,751 steps.

  python -m experiments.train \
      --config=experiments/configs/series/ethanol.py:lru \
      --config.data.data_dir=FOLDER --workdir=runs/ethanol

FOLDER/uea holds EthanolConcentration.npz: all series, and five random splits
(`rnnzoo/data/series/uea.py`). A split has 290 (published: 366), 79 and 79
series for training, validation and test.
Chance is a quarter: the published means are near it.

uea.py has the protocol of the papers, what is different here, and the command
that trains all layers and splits. Measured: nothing yet.
"""

from experiments.configs.series import uea

PUBLISHED = uea.published(
    (21.5, 2.1), (24.1, 4.3), (27.9, 4.5), (29.9, 0.6)
)


def get_config(layer: str = 'lru'):
  """Returns the config."""
  return uea.get_config(layer, 'EthanolConcentration')
