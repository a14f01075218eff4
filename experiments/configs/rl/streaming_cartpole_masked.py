r"""CartPole without velocities, learned from a stream: one step, one update.

  python -m experiments.streaming --workdir=runs/streaming \
      --config=experiments/configs/rl/streaming_cartpole_masked.py

The environment is that of ppo_cartpole_masked.py, and the algorithm is Stream
AC(lambda) with a recurrent layer in front (`rnnzoo/rl/streaming.py`). Step
sizes, bounds and decays are those of the paper
(https://arxiv.org/abs/2410.14606).
"""

from experiments.configs.rl import settings

# The layers read the two observations.
OPTIONS = dict(
    lru=dict(state_features=32),
    min_gru=dict(expansion_factor=16.0),
)


def get_config(learners: str = ''):
  """Returns the config."""
  config = settings.streaming('cart_pole', learners)
  config.environment.masked = True
  config.layer_options = OPTIONS
  return config
