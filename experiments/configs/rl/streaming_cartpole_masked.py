r"""CartPole without velocities, learned from a stream: one step, one update.

  python -m experiments.streaming --workdir=runs/streaming \
      --config=experiments/configs/rl/streaming_cartpole_masked.py

The environment is that of ppo_cartpole_masked.py, and the algorithm is Stream
AC(lambda) with a recurrent layer in front (`rnnzoo/rl/streaming.py`). Step
sizes, bounds and decays are those of the paper
(https://arxiv.org/abs/2410.14606); none was tuned here.

Result (`experiments/results/rl/streaming_cartpole_masked`), three agents,
100,000 steps each, the mean return of the episodes that ended in the last
10,000 of them, with the standard deviation over agents; 500 is the largest:

  lru      485 +- 26    exact gradients through the whole episode, 20 us a step
  lru_1    397 +- 179   no gradient through the past
  lru_10   377 +- 169   back-propagation through 10 steps, 68 us a step
  min_gru   17 +- 13    exact gradients; worse than no memory
  none      42 +- 1

So the LRU learns it, in about 20,000 steps; PPO was given 204,800. Three agents
do not separate exact from truncated gradients: one agent of `lru_1` and one of
`lru_10` stay below 200, the others reach 447 to 500. minGRU fails, and why was
not looked into.
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
