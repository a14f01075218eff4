r"""Autoencode of POPGym: watch a deck of cards, then name it in reverse order.

  python -m experiments.ppo \
      --config=experiments/configs/rl/ppo_autoencode.py:min_gru \
      --workdir=runs/autoencode

The easy level has 52 cards. The return is -0.5 for guesses, 0 if half of the
answers are right, and 1 if all are.
"""

from experiments.configs.rl import settings


def get_config(layer: str = 'min_gru'):
  """Returns the config: two blocks of width 64."""
  config = settings.defaults('autoencode', layer)
  config.model.num_layers = 2
  config.total_steps = 500
  config.num_environments = 32
  config.rollout_length = 104
  config.reward_scale = 10.0
  config.optimizer.learning_rate = 1e-3
  return config
