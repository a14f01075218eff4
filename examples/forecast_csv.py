"""Forecasts the next values of a column of a CSV file.

  python examples/forecast_csv.py --csv=my.csv --column=OT --workdir=/tmp/ett

Reads `--length` values and predicts the next `--horizon`. The first 70 % of the
rows train, the next 15 % choose the checkpoint, the last 15 % test.
"""

import csv

from absl import app
from absl import flags
import numpy as np
from rnnzoo import data
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo import training

_CSV = flags.DEFINE_string('csv', None, 'The file.', required=True)
_COLUMN = flags.DEFINE_string('column', None, 'Its column.', required=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where to write to.')
_LENGTH = flags.DEFINE_integer('length', 48, 'Values to read.', lower_bound=1)
_HORIZON = flags.DEFINE_integer('horizon', 12, 'To predict.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 500, 'Training steps.', lower_bound=1)


def windows(values, length, horizon):
  """Returns inputs `[N, length, 1]` and targets `[N, horizon]`."""
  both = np.lib.stride_tricks.sliding_window_view(values, length + horizon)
  return both[:, :length, None], both[:, length:]


def main(argv):
  del argv
  with open(_CSV.value, encoding='utf-8', newline='') as file:
    values = [float(row[_COLUMN.value]) for row in csv.DictReader(file)]
  ends = [int(len(values) * part) for part in (0, 0.7, 0.85, 1)]
  mean, std = np.mean(values[: ends[1]]), np.std(values[: ends[1]])
  values = ((np.array(values) - mean) / std).astype(np.float32)
  splits = {
      name: windows(values[first:last], _LENGTH.value, _HORIZON.value)
      for name, first, last in zip(data.arrays.SPLITS, ends, ends[1:])
  }
  x, y = ({name: arrays[i] for name, arrays in splits.items()} for i in (0, 1))
  dataset = data.from_arrays(x, y, batch_size=64)
  task = tasks.Regression(models.ModelConfig(
      layer='lru', num_layers=2, features=32, pooling='last'
  ))
  summary = training.train(
      task, dataset, _WORKDIR.value, total_steps=_STEPS.value,
      optimizer=dict(learning_rate=3e-3, warmup_steps=50),
  )
  print(task.sentence(summary, dataset))
  naive = np.square(x['test'][:, -1] - y['test']).mean()
  print(f'Repeating the last value: mean squared error {naive:.6g}.')


if __name__ == '__main__':
  flags.mark_flag_as_required('workdir')
  app.run(main)
