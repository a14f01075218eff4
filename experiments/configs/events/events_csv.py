r"""Your own events in a CSV file: when the next one comes, and its type.

  python -m experiments.train \
      --config=experiments/configs/events/events_csv.py:lru \
      --config.data.path=my_events.csv --config.data.type_column=type \
      --config.data.sequence_column=sequence --workdir=runs/my_events

rnnzoo/data/events/events_csv.py says what the file looks like. The run prints
the loss of a Poisson process for comparison.
"""

from experiments.configs import default
from experiments.configs.events import hawkes

# None: the file is yours.
PUBLISHED = []


def get_config(layer: str = 'lru'):
  """Returns the config of `hawkes.py` for a file, with fewer steps."""
  config = hawkes.get_config(layer)
  default.use_data(config, 'events_csv')
  config.total_steps = 800
  config.batch_size = 16
  config.model.dropout = 0.1
  config.patience = 3
  config.smoke_overrides.data.sequence_length = 24
  return config
