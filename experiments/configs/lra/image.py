r"""Image of the Long Range Arena: CIFAR-10 in grey, read pixel by pixel.

  python scripts/prepare_datasets.py cifar10 --manual_dir=DIRECTORY
  python -m experiments.train --config=experiments/configs/lra/image.py:lru \
      --workdir=runs/image

DIRECTORY holds `cifar-10-binary.tar.gz`. 45,000 images train, 5,000 choose the
checkpoint, and the usual 10,000 test. A sequence has 1,024 steps of one number.

The settings of `:lru`, of the rows of its ablation such as `:lru_polar`, of
`:s5`, `:s4`, `:s4d`, `:min_gru`, `:mamba` and of any other layer are in
`settings.py`, which lists the differences from the papers. The LRU paper has no
grey images, only colour images (`images/scifar.py`): choose the learning rate
on the validation part.

  python -m experiments.sweep \
      --configs=experiments/configs/lra/image.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3 \
      --workdir=runs/image_rates

Published accuracies on the test part: S4 88.65 %, S4D 88.19 %, S5 88.00 %, and
42.44 % of a Transformer. None is known for the LRU on grey images. Measured:
nothing yet.
"""

from experiments.configs import default
from experiments.configs.lra import accuracies
from experiments.configs.lra import settings

PUBLISHED = accuracies.of_task('image')
EPOCH = 900  # Steps: 45,000 images in batches of 50.

# Options of a layer in a smoke run, if it has them.
SMALL = dict(state_features=16, blocks=1)


def get_config(layer: str = 'lru', task: str = 'image'):
  """Returns the config.

  Args:
    layer: The layer, or a row of the ablation.
    task: `image`, or `scifar` in colour.
  """
  config = default.get_config()
  default.use_data(config, 'cifar10')
  settings.use(config, task, layer)
  config.log_every = 100
  config.eval_every = EPOCH
  config.save_every = EPOCH
  config.keep = 1

  config.smoke_overrides.update(dict(
      total_steps=100, batch_size=32, log_every=10, eval_every=50,
      save_every=50, keep=3, data=dict(sequence='rows'),
      optimizer=dict(learning_rate=1e-2, warmup_steps=10),
  ))
  config.smoke_overrides.model.layer_options = {
      name: value for name, value in SMALL.items()
      if name in config.model.layer_options
  }
  return config
