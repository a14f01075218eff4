r"""RepeatPrevious of POPGym: name the suit that was shown some steps ago.

  python -m experiments.ppo \
      --config=experiments/configs/rl/ppo_repeat_previous.py:min_gru \
      --workdir=runs/repeat_previous

Three levels: `--config.environment.level=medium` asks for the 32nd last suit in
place of the 4th last. The return is 1 if all answers are right, and -0.5 for
guesses, which is what a policy without memory (`:none`) gets.

Result (`experiments/results/rl/ppo_repeat_previous`), easy, three at once
(`--config.num_seeds=3`), 409,600 steps each, the best of ten evaluations:
minGRU 0.60 in 3 x 64 new episodes (80 % of the answers right), still rising,
50,757 parameters; without memory -0.51, 34,117 parameters. The steps took 362 s
and 228 s on one CPU core that many other programs used, too; compilation comes
on top.
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
