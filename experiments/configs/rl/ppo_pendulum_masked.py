r"""Pendulum without its velocity: swing it up and hold it, by memory.

  python -m experiments.ppo \
      --config=experiments/configs/rl/ppo_pendulum_masked.py:min_gru \
      --workdir=runs/pendulum_masked

The environment is Gymnasium's Pendulum-v1; the policy sees the direction only.
The torque of each step is a real number with a normal distribution.
"""

from experiments.configs.rl import settings


def get_config(layer: str = 'min_gru'):
  """Returns the config: one block of width 64."""
  config = settings.defaults('pendulum', layer)
  config.environment.masked = True
  config.total_steps = 300
  config.num_environments = 32
  config.rollout_length = 64
  config.discount = 0.95
  config.entropy_weight = 0.0
  config.reward_scale = 0.1
  config.optimizer.learning_rate = 1e-3
  return config
