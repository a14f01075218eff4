r"""NARMA-10: what a nonlinear filter of order 10 makes of random numbers.

  python -m experiments.online \
      --config=experiments/configs/online/narma.py --workdir=runs/narma

The task asks for memory: the target depends on the last ten inputs and on
targets, which no learner reads. rnnzoo/online/streams.py has the equation.
"""

from experiments.configs.online import settings


def get_config(learners: str = ''):
  """Returns the config."""
  return settings.defaults('narma', learners)
