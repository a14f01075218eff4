r"""Draws a forecast of a run: the past, the truth and what was predicted.

  python -m experiments.forecast --workdir=runs/etth1 --window=100 \
      --columns=OT,HUFL --output=forecast.png

A model with `distribution` `gaussian` or `quantile` has a band, too.
"""

import pathlib

from absl import flags
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import forecasts
from experiments.cli import tasks
from rnnzoo import restoring

_WORKDIR = drivers.define_path('workdir', None, 'The directory of the run.')
_SPLIT = flags.DEFINE_string(
    'split', 'test', 'The part of the data, such as test or validation.'
)
_WINDOW = flags.DEFINE_integer(
    'window', None,
    'The number of the window in this part; one in the middle by default.',
)
_COLUMNS = flags.DEFINE_list(
    'columns', [], 'The columns to draw; the last four by default.'
)
_OUTPUT = drivers.define_path(
    'output', 'forecast.png', 'Write the plot to this file.'
)
_DATA_DIR = drivers.define_data_dir()
_LAYERS = drivers.define_layers()


def main(argv):
  drivers.check_usage(argv, workdir=_WORKDIR.value)
  exports = config_flag.exports_of(_LAYERS.value)
  run = restoring.restore_run(
      _WORKDIR.value, layers=exports.layers, tasks=exports.tasks
  )
  config = tasks.of_run(run.config, exports)
  if _DATA_DIR.value is not None:
    config.data.data_dir = _DATA_DIR.value
  dataset = tasks.load_data_of_run(run, config, exports)
  forecasts.draw(
      forecasts.make(run, dataset, _SPLIT.value, _WINDOW.value),
      pathlib.Path(_OUTPUT.value),
      f'{config.model.layer} on {dataset.name}, {_SPLIT.value}',
      _COLUMNS.value,
  )
  print(f'forecast: {_OUTPUT.value}')


if __name__ == '__main__':
  drivers.run(main)
