r"""RepeatPrevious of POPGym: name the suit that was shown some steps ago.

  python -m experiments.ppo \
      --config=experiments/configs/rl/ppo_repeat_previous.py:min_gru \
      --workdir=runs/repeat_previous

Three levels: `--config.environment.level=medium` asks for the 32nd last suit in
place of the 4th last. The return is 1 if all answers are right, and -0.5 for
guesses, which is what a policy without memory (`:none`) gets.

Result (`experiments/results/rl/ppo_repeat_previous`), easy, seed 0, 409,600
steps, the best of ten evaluations of 64 episodes, on the episodes that chose
it: minGRU 0.533 (77 % of the answers right), still rising, 50,757 parameters;
without memory -0.484, 34,117 parameters. One seed each, from before runs left a
`result.json`. The last 389,120 steps took 5 minutes with minGRU, at 1,100 to
2,000 environment steps/s on two CPU cores that other programs used, too;
compilation comes on top.
"""

from experiments.configs.rl import settings


def get_config(layer: str = 'min_gru'):
  """Returns the config: two blocks of width 64, 409,600 steps of an agent."""
  config = settings.defaults('repeat_previous', layer)
  config.model.num_layers = 2
  config.total_steps = 200
  config.num_environments = 32
  config.rollout_length = 64
  config.eval_every = 20
  config.save_every = 20
  # The return is at most 1, and the answers come 4 steps later at most.
  config.reward_scale = 10.0
  config.optimizer.learning_rate = 3e-3
  return config
