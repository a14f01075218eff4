r"""SelfRegulationSCP1: two classes of 6 channels of EEG, 896 steps.

  python -m experiments.train \
      --config=experiments/configs/series/scp1.py:lru \
      --config.data.data_dir=FOLDER --workdir=runs/scp1

FOLDER/uea holds SelfRegulationSCP1.npz: all series, and five random splits
(`rnnzoo/data/series/uea.py`). A split has 298 (published: 392), 84 and 85
series for training, validation and test.

uea.py has the protocol of the papers, what is different here, and the command
that trains all layers and splits. Measured: nothing yet.
"""

from experiments.configs.series import uea

PUBLISHED = uea.published(
    (82.6, 3.4), (89.9, 4.6), (80.7, 1.4), (87.8, 2.6)
)


def get_config(layer: str = 'lru'):
  """Returns the config."""
  return uea.get_config(layer, 'SelfRegulationSCP1')
