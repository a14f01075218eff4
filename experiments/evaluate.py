"""Evaluates the best checkpoint of a run on a split of its data.

  python -m experiments.evaluate --workdir=runs/quickstart --split=test
"""

import math

from absl import flags
from experiments import drivers
from experiments import hosts
from experiments import tasks
from rnnzoo import restoring
from rnnzoo.training import checks
from rnnzoo.training import evaluation
from rnnzoo.training import sharding
from rnnzoo.training.processes import host
from rnnzoo.training.processes import multihost

_WORKDIR = drivers.define_path('workdir', None, 'The directory of the run.')
_SPLIT = flags.DEFINE_string('split', 'test', 'Such as test or validation.')
_DATA_DIR = drivers.define_path(
    'data_dir', None, 'Where the data lies, if not where it lay in training.'
)
_ALLOW_CHANGED = flags.DEFINE_bool(
    'allow_changed', False, 'Evaluate though the data is not what it was.'
)
_LAYERS = drivers.define_path(
    'layers', None, 'The config file whose LAYERS the run used, if it did.'
)


def main(argv):
  drivers.check_usage(argv, workdir=_WORKDIR.value, split=_SPLIT.value)
  host.pin_malloc()
  host.enable_compilation_cache()
  hosts.join()
  layers = drivers.layers_of(_LAYERS.value)
  run = restoring.restore_run(_WORKDIR.value, layers=layers)
  config = tasks.of_run(run.config)
  if _DATA_DIR.value is not None:
    config.data.data_dir = _DATA_DIR.value
  mesh = sharding.make_mesh(
      dict(data=-1, fsdp=1, model=1, sequence=1),
      multihost.sharing_devices(config.batch_size),
  )
  index, count = multihost.data_shard(mesh)
  task, dataset = tasks.make_task(
      config, layers, process_index=index, process_count=count
  )
  checks.check_vocabulary(
      task.meta['vocabulary'], run.vocabulary and run.vocabulary.to_json()
  )
  checks.check_data(
      task.meta['data'], run.data, '--allow_changed', _ALLOW_CHANGED.value
  )
  means = evaluation.evaluate_model(task, run.model, _SPLIT.value, mesh)
  if not hosts.is_first():
    return
  loss = means['loss']
  print(
      f'{dataset.name}, {_SPLIT.value}, step {run.step}: loss {loss:.4f} nats, '
      f'{loss / math.log(2):.4f} bits per token, '
      f'accuracy {means["accuracy"]:.4f}'
  )
  if _SPLIT.value == 'test':  # They are of the test split.
    for name, value in dataset.baselines().items():
      print(f'  {name.replace("_", " ")}: {value:.4f}')


if __name__ == '__main__':
  drivers.run(main)
