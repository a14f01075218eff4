r"""Sunspots: the yearly numbers since 1700, one year ahead.

  python -m experiments.online \
      --config=experiments/configs/online/sunspots.py --workdir=runs/sunspots

The series is inside statsmodels: pip install --no-deps statsmodels, or the
extra `streams`. It has 308 steps.
"""

from experiments.configs.online import settings


def get_config(learners: str = ''):
  """Returns the config."""
  return settings.defaults('sunspots', learners)
