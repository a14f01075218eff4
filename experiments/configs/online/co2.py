r"""CO2: the weekly concentration since 1958, one week ahead.

  python -m experiments.online \
      --config=experiments/configs/online/co2.py --workdir=runs/co2

The series is inside statsmodels: pip install --no-deps statsmodels, or the
extra `streams`. It rises all the time, so the error of repeating the last
value is small; compare with it.
"""

from experiments.configs.online import settings


def get_config(learners: str = ''):
  """Returns the config."""
  return settings.defaults('co2', learners)
