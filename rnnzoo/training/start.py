"""From Python arguments to a run: what `rnnzoo.training.train` does."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from rnnzoo import errors
from rnnzoo.training import checks
from rnnzoo.training import config as config_lib
from rnnzoo.training import loop
from rnnzoo.training.processes import lock


def from_settings(task, dataset, workdir, settings) -> dict[str, Any]:
  """See `rnnzoo.training.train`."""
  if task.name != dataset.task:
    raise errors.UserValueError(
        f'`task` is {task.name}, but {dataset.name} is a data set for '
        f'{dataset.task}.'
    )
  if settings.get('batch_size', dataset.batch_size) != dataset.batch_size:
    raise errors.UserValueError(
        f'batch_size is {settings["batch_size"]}, but the data set was loaded '
        f'with batch_size={dataset.batch_size}. Give it to the data set alone.'
    )
  task = task.bind(dataset)
  settings = settings | dict(batch_size=dataset.batch_size)
  config = with_parts(config_lib.make(settings), task, dataset)
  defaults = with_parts(ConfigDict(config_lib.defaults()), task, dataset)
  with lock.hold(workdir):
    workdir = checks.open_workdir(workdir, config, defaults.to_dict())
    return loop.train(task, dataset, config, workdir)


def with_parts(config, task, dataset) -> ConfigDict:
  """Returns a config with the parts `model` and `data`."""
  config = ConfigDict(config.to_dict())
  model = dataclasses.asdict(task.model)
  config.model = ConfigDict(model)
  config.data = ConfigDict(dict(dataset.config) or dict(name=dataset.name))
  return config
