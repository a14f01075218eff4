"""What the configs of online regression share."""

import copy

from ml_collections import ConfigDict
from rnnzoo.online import regression
from rnnzoo.online import streams

# No memory, a few lags, online learners, and truncation at several lengths.
LEARNERS = (
    'linear_1', 'linear_10', 'srnn', 'lru', 'min_gru', 'lstm_1', 'lstm_5',
    'lstm_20',
)


def defaults(stream: str = 'mackey_glass', learners: str = '') -> ConfigDict:
  """Returns a config of `experiments.online`.

  Args:
    stream: The stream.
    learners: The names of learners, joined by commas; `LEARNERS` if empty.
  """
  config = ConfigDict({
      name: copy.deepcopy(field.default)
      for name, field in regression.FIELDS.items()
  })
  config.learners = tuple(learners.split(',')) if learners else LEARNERS
  config.stream = ConfigDict({
      name: field.default for name, field in streams.FIELDS.items()
  })
  config.stream.name = stream
  config.smoke = False
  config.smoke_overrides = ConfigDict(dict(
      num_seeds=1, learners=('linear_2', 'srnn', 'lru', 'lstm_2'), features=4,
      srnn_window=2, stream=dict(length=60),
  ))
  return config
