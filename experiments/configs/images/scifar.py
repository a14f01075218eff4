r"""sCIFAR: CIFAR-10 in colour, read pixel by pixel.

  python scripts/prepare_datasets.py cifar10 --manual_dir=DIRECTORY
  python -m experiments.train \
      --config=experiments/configs/images/scifar.py:lru --workdir=runs/scifar

Everything but the colours is as in `lra/image.py`: a step reads the red, green
and blue of a pixel. For the LRU this is the model and the training of table 9
of its paper.

Published accuracies on the test part: LRU 89.0 % (standard error 0.1), and in
the same paper S4D 91.5 % (0.2) and S5 88.8 % (0.1). The papers of S4, S4D and
S5 have 91.1 %, 89.9 % and 90.1 %. Nothing has been measured yet.
"""

from experiments.configs.lra import ablation
from experiments.configs.lra import image

_LRU = 'https://arxiv.org/abs/2303.06349, table 3'
PUBLISHED = [
    dict(layer=layer, metric='accuracy', value=value, error=error, split='test',
         source=source)
    for layer, value, error, source in (
        ('lru', 0.89, 0.001, _LRU),
        ('s4d', 0.915, 0.002, f'{_LRU}, a reproduction'),
        ('s5', 0.888, 0.001, f'{_LRU}, a reproduction'),
        ('s4', 0.911, None, f'{_LRU}, of the paper of S4'),
        ('s4d', 0.899, None, f'{_LRU}, of the paper of S4D'),
        ('s5', 0.901, None, f'{_LRU}, of the paper of S5'),
    )
] + ablation.numbers('scifar')


def get_config(layer: str = 'lru'):
  """Returns the config of `lra/image.py`, in colour."""
  config = image.get_config(layer, 'scifar')
  config.data.color = 'rgb'
  return config
