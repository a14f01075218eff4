r"""sCIFAR: CIFAR-10 in colour, read pixel by pixel.

  python scripts/prepare_datasets.py cifar10 --manual_dir=DIRECTORY
  python -m experiments.train \
      --config=experiments/configs/images/scifar.py:lru --workdir=runs/scifar

Everything but the colours is as in `lra/image.py`: a step reads the red, green
and blue of a pixel. For the LRU this is the model and the training of table 9
of its paper.

Published accuracies on the test part: LRU 89.0 % (standard error 0.1), and in
the same paper S4D 91.5 % (0.2) and S5 88.8 % (0.1). The papers of S4, S4D and
S5 have 91.1 %, 89.9 % and 90.1 %. Measured: nothing yet.
"""

from experiments.configs.lra import accuracies
from experiments.configs.lra import image

PUBLISHED = accuracies.of_task('scifar')


def get_config(layer: str = 'lru'):
  """Returns the config of `lra/image.py`, in colour."""
  config = image.get_config(layer, 'scifar')
  config.data.color = 'rgb'
  return config
