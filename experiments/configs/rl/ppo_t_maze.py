r"""The T-maze: a sign at the start says where to turn at the end.

  python -m experiments.ppo \
      --config=experiments/configs/rl/ppo_t_maze.py:min_gru \
      --workdir=runs/t_maze

`--config.environment.length=100` is a longer corridor. The return is 1 for the
right side; without memory (`:none`) it is 0 on average.

Result (`experiments/results/rl/ppo_t_maze`), a corridor of 10 steps, three
agents at once (`--config.num_seeds=3`), 204,800 steps each, the best of five
evaluations: minGRU 1 in all of 3 x 64 new episodes, 6,692 parameters; without
memory -0.06, 4,580 parameters. The steps took 192 s and 100 s, at 3,300 to
11,300 environment steps/s on one CPU core that many other programs used, too;
compilation comes on top.
"""

from experiments.configs.rl import settings


def get_config(layer: str = 'min_gru'):
  """Returns the config: one block of width 32."""
  config = settings.defaults('t_maze', layer)
  config.model.features = 32
  config.total_steps = 100
  config.num_environments = 32
  config.rollout_length = 64
  config.eval_every = 20
  config.save_every = 20
  config.optimizer.learning_rate = 3e-3
  return config
