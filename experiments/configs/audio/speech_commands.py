r"""Speech Commands: 35 words, read sample by sample: 16,000 steps.

  python scripts/prepare_datasets.py speech_commands --manual_dir=DIRECTORY
  python -m experiments.train \
      --config=experiments/configs/audio/speech_commands.py:s5 \
      --workdir=runs/speech_commands

DIRECTORY holds `speech_commands_v0.02.tar.gz`, packed or unpacked. The lists in
it say which clips are for validation and testing. `--config.data.words=10` is
SC10, and `--config.data.rate=8000` reads every second sample, 8,000 steps.

`:s5` is the model of the official code of S5 and trains as long as there, with
its rates and weight decays; one epoch of warm-up is ours. `:lru`, and any other
layer, stands in the same block, with settings of our own.

No published number is known to us. Nothing has been measured yet.
"""

from experiments.configs import default
from experiments.configs.lra import settings
from rnnzoo import models

PUBLISHED = []
# Options of the layers other than S5.
OPTIONS = dict(lru=dict(state_features=128, r_min=0.9, r_max=0.999))
# Options of a layer in a smoke run, if it has them.
SMALL = dict(state_features=16, blocks=1)
EPOCH = 5_300  # Steps: about 85,000 clips in batches of 16.


def get_config(layer: str = 's5'):
  """Returns the config: six layers of width 96, 40 epochs."""
  config = default.get_config()
  default.use_data(config, 'speech_commands')
  config.batch_size = 16
  config.total_steps = 40 * EPOCH
  config.log_every = 100
  config.eval_every = EPOCH
  config.save_every = EPOCH
  config.keep = 1

  # The model and its optimiser.
  model = models.PRESETS['s5_speech']
  if layer != 's5':
    model = model.replace(
        layer=layer, layer_options=OPTIONS.get(layer, {}), bidirectional=True
    )
  config.model = default.model(model)
  config.optimizer.update(dict(
      learning_rate=8e-3, end_learning_rate=0.0, warmup_steps=EPOCH,
      recurrent_rate_factor=0.25, weight_decay=0.04, clip=0.0,
      options=dict(b2=0.999),
  ))
  if layer == 's5':
    config.optimizer.groups = settings.s5_groups('noBCdecay', 4)

  config.smoke_overrides.update(dict(
      total_steps=40, batch_size=8, eval_every=20, save_every=20, keep=3,
      model=dict(num_layers=1, features=16, dropout=0.0),
      data=dict(words=10, rate=8000),
      optimizer=dict(learning_rate=1e-2, warmup_steps=5),
  ))
  config.smoke_overrides.model.layer_options = {
      name: value for name, value in SMALL.items()
      if name in config.model.layer_options
  }
  return config
