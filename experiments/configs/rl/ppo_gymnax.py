r"""MemoryChain of gymnax, or any other environment of that package.

  pip install -e '.[rl]'
  python -m experiments.ppo \
      --config=experiments/configs/rl/ppo_gymnax.py:min_gru \
      --workdir=runs/gymnax --config.environment.id=MemoryChain-bsuite

A bit is shown at the first step, and asked for at the last one. gymnax 1.0.1
needs JAX below 0.12, which pip then installs.
"""

from experiments.configs.rl import settings


def get_config(layer: str = 'min_gru'):
  """Returns the config: one block of width 32."""
  config = settings.defaults('gymnax', layer)
  config.environment.id = 'MemoryChain-bsuite'
  config.model.features = 32
  config.total_steps = 100
  config.num_environments = 32
  config.rollout_length = 64
  config.eval_every = 20
  config.save_every = 20
  config.optimizer.learning_rate = 3e-3
  return config
