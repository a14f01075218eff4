r"""SelfRegulationSCP2: two classes of 7 channels of EEG, 1,152 steps.

  python -m experiments.train \
      --config=experiments/configs/series/scp2.py:lru \
      --config.data.data_dir=FOLDER --workdir=runs/scp2

FOLDER/uea holds SelfRegulationSCP2.npz: all series, and five random splits
(`rnnzoo/data/series/uea.py`). A split has 197 (published: 266), 57 and 57
series for training, validation and test.
Chance is a half: the published means are near it.

uea.py has the protocol of the papers, what is different here, and the command
that trains all layers and splits. Measured: nothing yet.
"""

from experiments.configs.series import uea

PUBLISHED = uea.published(
    (51.2, 3.6), (50.5, 2.6), (48.2, 3.9), (58.2, 6.9)
)


def get_config(layer: str = 'lru'):
  """Returns the config."""
  return uea.get_config(layer, 'SelfRegulationSCP2')
