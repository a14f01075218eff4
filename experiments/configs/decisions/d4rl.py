r"""D4RL's trajectories of MuJoCo, in the protocol of the Decision Transformer.

  pip install -e '.[decisions]'
  python scripts/prepare_datasets.py d4rl_hopper_medium --manual_dir=DIR
  python -m experiments.train \
      --config=experiments/configs/decisions/d4rl.py:min_gru \
      --config.data.robot=hopper --config.data.quality=medium \
      --workdir=runs/d4rl_hopper
  python -m experiments.act --workdir=runs/d4rl_hopper --episodes=100 \
      --target_return=3600

Width, depth, rate, warm-up, clipping, dropout, window and the 100,000 steps are
those of the paper (https://arxiv.org/abs/2106.01345), with one vector for each
step in place of three tokens. Its target returns are 3600 and 1800 for Hopper,
12000 and 6000 for HalfCheetah, 5000 and 2500 for Walker2d. Its normalised
scores, second-hand, in the order medium, medium-replay, medium-expert:
HalfCheetah 42.6, 36.6, 86.8; Hopper 67.6, 82.7, 107.6; Walker2d 74.0, 66.6,
108.1. None of this has been run by us: the data has to be fetched. One part in
ten is held out for validation and test, which the paper trains on.
"""

from experiments.configs import default
from experiments.configs.decisions import hopper


def get_config(layer: str = 'min_gru'):
  """Returns the config: three blocks of width 128, 100,000 steps.

  Args:
    layer: The layer of the blocks, or `behaviour_cloning`.
  """
  config = hopper.get_config(layer)
  default.use_data(config, 'd4rl')
  config.model.num_layers = 3
  config.model.features = 128
  config.total_steps = 100_000
  config.log_every = 500
  config.eval_every = 10_000
  config.save_every = 10_000
  config.optimizer.learning_rate = 1e-4
  config.optimizer.end_learning_rate = 1e-4
  config.optimizer.warmup_steps = 10_000
  return config
