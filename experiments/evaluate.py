"""Evaluates the best checkpoint of a run on a part of its data.

  python -m experiments.evaluate --workdir=runs/quickstart --split=test

`--predictions=FILE` writes a line of JSON for every sequence: its target, the
prediction and its length.
"""

import json
import pathlib

from absl import flags
from absl import logging
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import hosts
from experiments.cli import tasks
import jax
import numpy as np
from rnnzoo import restoring
from rnnzoo.tasks import base
from rnnzoo.training import evaluation
from rnnzoo.training import files
from rnnzoo.training import sharding
from rnnzoo.training import step as step_lib
from rnnzoo.training.processes import host
from rnnzoo.training.processes import multihost

_WORKDIR = drivers.define_path('workdir', None, 'The directory of the run.')
_SPLIT = flags.DEFINE_string(
    'split', 'test',
    'The part of the data to evaluate on, such as test or validation.',
)
_DATA_DIR = drivers.define_data_dir()
_ALLOW_CHANGED = flags.DEFINE_bool(
    'allow_changed', False,
    'Evaluate even if the data has changed since training.',
)
_PREDICTIONS = drivers.define_path(
    'predictions', None,
    'Write every prediction to this file, as lines of JSON.',
)
_LAYERS = drivers.define_layers()
flags.adopt_module_key_flags(hosts)


def main(argv):
  drivers.check_usage(argv, workdir=_WORKDIR.value, split=_SPLIT.value)
  host.pin_malloc()
  host.enable_compilation_cache()
  hosts.join()
  exports = config_flag.exports_of(_LAYERS.value)
  run = restoring.restore_run(
      _WORKDIR.value, layers=exports.layers, tasks=exports.tasks
  )
  config = tasks.of_run(run.config, exports)
  if _DATA_DIR.value is not None:
    config.data.data_dir = _DATA_DIR.value
  mesh = sharding.make_mesh(
      dict(data=-1, fsdp=1, model=1, sequence=1),
      multihost.sharing_devices(config.batch_size),
  )
  index, count = multihost.data_shard(mesh)
  dataset = tasks.load_data_of_run(
      run, config, exports, allow_changed=_ALLOW_CHANGED.value,
      process_index=index, process_count=count,
  )
  means = evaluation.evaluate_model(
      run.task, dataset, run.model, _SPLIT.value, mesh
  )
  if hosts.is_first():
    print(
        f'{dataset.name}, {_SPLIT.value}, step {run.step}: '
        f'{run.task.describe(means, dataset)}'
    )
    if _SPLIT.value == 'test':  # The following is known of the test split only.
      for name, value in run.task.derived(means, dataset).items():
        print(f'  {name.replace("_", " ")}: {value:.4f}')
      for name, value in dataset.baselines().items():
        print(f'  for comparison, {name.replace("_", " ")}: {value:.4f}')
  # The next token is asked for everywhere: there is nothing more to say. And a
  # prediction reads whole rows, which may be too long for the memory.
  steps = dataset.split_lengths.get(_SPLIT.value, dataset.sequence_length)
  wants_details = (
      type(run.task).details is not base.Task.details
      and not dataset.forecast and steps <= step_lib.SEGMENT_STEPS
  )
  if _PREDICTIONS.value or wants_details and jax.process_count() == 1:
    found = evaluation.predict(
        run.task, dataset, run.model, _SPLIT.value, mesh
    )
    for line in run.task.details(found, dataset):
      print(line)
    if _PREDICTIONS.value:
      write_predictions(found, _PREDICTIONS.value)
      logging.info('Written: %s', _PREDICTIONS.value)


def write_predictions(found, path):
  """Writes a line of JSON for each sequence, in the order of the data set."""

  def plain(u):
    if np.asarray(u).dtype.kind == 'f' and np.isnan(u).any():
      u = np.where(np.isnan(u), None, u)  # JSON has no NaN.
    return u.tolist() if hasattr(u, 'tolist') else u

  count = len(found['prediction'])
  files.write_text(pathlib.Path(path), ''.join(
      json.dumps({name: plain(u[i]) for name, u in found.items()}) + '\n'
      for i in range(count)
  ))


if __name__ == '__main__':
  drivers.run(main)
