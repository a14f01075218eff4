r"""A linear process whose frequency changes every 500 steps on average.

  python -m experiments.online \
      --config=experiments/configs/online/switching_ar.py \
      --workdir=runs/switching_ar

The learners have to follow. `best_possible_error` in the records is the part
of the variance that is noise.
"""

from experiments.configs.online import settings


def get_config(learners: str = ''):
  """Returns the config."""
  return settings.defaults('switching_ar', learners)
