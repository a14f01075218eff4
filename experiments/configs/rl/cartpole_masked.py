r"""CartPole without velocities: a policy has to remember where the pole was.

  python -m experiments.ppo \
      --config=experiments/configs/rl/cartpole_masked.py:min_gru \
      --workdir=runs/cartpole_masked

The environment is Gymnasium's CartPole-v1; the policy sees the position of the
cart and the angle of the pole only. `:none` trains a policy without memory,
and `--config.environment.masked=False` shows the velocities. An episode has at
most 500 steps with a reward of 1 each.
"""

from experiments.configs.rl import settings


def get_config(layer: str = 'min_gru'):
  """Returns the config: one block of width 32, 204,800 steps of an agent."""
  config = settings.defaults('cart_pole', layer)
  config.environment.masked = True
  config.model.features = 32
  config.total_steps = 100
  config.num_environments = 32
  config.rollout_length = 64
  config.eval_every = 20
  config.save_every = 20
  config.reward_scale = 0.1
  config.optimizer.learning_rate = 3e-3
  return config
