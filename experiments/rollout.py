r"""Draws what the model of a run predicts of some videos: a GIF and a PNG.

  python -m experiments.rollout --workdir=runs/moving --examples=0,1,2 \
      --output=rollout.gif

The GIF shows the truth, the prediction and their difference side by side; the
PNG, `rollout.png`, all of its frames in a row. The model sees the first frames,
and predicts each later one from its own prediction before it.
"""

import pathlib

from absl import flags
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import rollouts
from experiments.cli import tasks
from rnnzoo import errors
from rnnzoo import restoring

_WORKDIR = drivers.define_path('workdir', None, 'The directory of the run.')
_SPLIT = flags.DEFINE_string(
    'split', 'test', 'The part of the data, such as test or validation.'
)
_EXAMPLES = flags.DEFINE_list(
    'examples', ['0', '1', '2'], 'The numbers of the sequences in this part.'
)
_SCALE = flags.DEFINE_integer(
    'scale', 2, 'How many pixels of the GIF a pixel of a frame is wide.',
    lower_bound=1, upper_bound=64,
)
_OUTPUT = drivers.define_path(
    'output', 'rollout.gif',
    'Write the GIF to this file, and the PNG beside it.',
)
_DATA_DIR = drivers.define_data_dir()
_LAYERS = drivers.define_layers()


def main(argv):
  drivers.check_usage(argv, workdir=_WORKDIR.value)
  output = pathlib.Path(_OUTPUT.value)
  if output.suffix != '.gif':
    raise errors.UserValueError(f'--output must end in .gif, got {output}.')
  try:
    numbers = [int(text) for text in _EXAMPLES.value]
  except ValueError:
    numbers = []
  if not numbers:
    raise errors.UserValueError(
        '--examples must be numbers, joined by commas, got '
        f'{",".join(_EXAMPLES.value)!r}.'
    )
  exports = config_flag.exports_of(_LAYERS.value)
  run = restoring.restore_run(
      _WORKDIR.value, layers=exports.layers, tasks=exports.tasks
  )
  config = tasks.of_run(run.config, exports)
  if _DATA_DIR.value is not None:
    config.data.data_dir = _DATA_DIR.value
  dataset = tasks.load_data_of_run(run, config, exports)
  rollouts.draw(
      rollouts.make(run, dataset, _SPLIT.value, numbers), output, _SCALE.value
  )
  print(f'rollout: {output} and {output.with_suffix(".png")}')


if __name__ == '__main__':
  drivers.run(main)
