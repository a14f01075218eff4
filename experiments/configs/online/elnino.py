r"""El Nino: the monthly temperature of the sea since 1950, one month ahead.

  python -m experiments.online \
      --config=experiments/configs/online/elnino.py --workdir=runs/elnino

The series is inside statsmodels: pip install --no-deps statsmodels, or the
extra `streams`. It has 731 steps.
"""

from experiments.configs.online import settings


def get_config(learners: str = ''):
  """Returns the config."""
  return settings.defaults('elnino', learners)
