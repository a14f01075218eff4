r"""Moving MNIST: ten frames of two bouncing digits, and the next ten.

  python scripts/prepare_datasets.py smnist --manual_dir=DIR
  python -m experiments.train \
      --config=experiments/configs/video/moving_mnist.py:conv_s5_small \
      --workdir=runs/moving
  python -m experiments.rollout --workdir=runs/moving

DIR holds the four files of MNIST. `:conv_lstm_small` is ConvLSTM. `:conv_s5`
and `:conv_lstm` have the published frames of 64 x 64 and a larger model; nobody
has trained them to the end yet. All settings are ours.

The small form halves the digits and has frames of 32 x 32, so its errors are
not those of the publications. Measured once, one seed, on one shared CPU core
that other programs used most of the time, so the times are no speeds. Squared
errors of a frame, summed over pixels, on 200 test sequences:

    layer      steps  ten predicted frames  next frame  parameters
    conv_s5     1000                 27.65       15.42      25,516
    conv_lstm    482                 27.93       16.63      54,780
    copying the last frame           59.41
    black frames                     37.28

Both beat copying and black frames, by grey clouds where digits may be, which
vanish or spread after a few frames (`rollout.gif` and `rollout.png` beside the
records in `experiments/results/video/moving_mnist`). ConvLSTM was stopped in
step 482 (`--config.total_steps=482`). Both still improved: far from what they
can do, and no comparison of the two, which got unequal steps.

`experiments/results/moving_mnist_cpu.json` has the bytes and the time of a
training step against the number of frames: at 320 frames ConvS5 takes 290 ms of
CPU time and 76 MiB, ConvLSTM 836 ms and 111 MiB.
"""

from experiments.configs import default
from rnnzoo import models


def get_config(variant: str = 'conv_s5'):
  """Returns the config.

  Args:
    variant: The layer; `_small` after it means small frames and a small model.
  """
  layer = variant.removesuffix('_small')
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=3, features=64, norm='layer', mlp='geglu',
      mlp_factor=1,
  ))
  default.use_data(config, 'moving_mnist')
  config.total_steps = 20_000
  config.batch_size = 16
  config.log_every = 50
  config.eval_every = 1000
  config.save_every = 1000
  config.keep = 1
  config.ema_decay = 0.99
  config.optimizer.schedule = 'constant'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.weight_decay = 0.01
  if layer != variant:
    config.model.num_layers = 2
    config.model.features = 16
    config.data.size = 32
    config.data.digit_size = 14
    config.data.eval_examples = 200
    config.total_steps = 1000
    config.batch_size = 8
    config.log_every = 25
    config.eval_every = 100
    config.save_every = 100
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
  config.smoke_overrides.update(dict(
      total_steps=60, batch_size=8, log_every=10, eval_every=30,
      save_every=30, keep=3, model=dict(num_layers=1, features=8),
      data=dict(
          sequence_length=4, horizon=2, size=20, digit_size=14,
          eval_examples=16,
      ),
      optimizer=dict(learning_rate=1e-2, warmup_steps=1),
  ))
  return config
