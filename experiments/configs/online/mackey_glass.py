r"""Mackey-Glass: a chaotic series, one step of 6 units of time ahead.

  python -m experiments.online \
      --config=experiments/configs/online/mackey_glass.py \
      --workdir=runs/mackey_glass

`FILE:lru` is one learner, `FILE:lru,lstm_10` are two.
rnnzoo/online/streams.py has the equation.
"""

from experiments.configs.online import settings


def get_config(learners: str = ''):
  """Returns the config."""
  return settings.defaults('mackey_glass', learners)
