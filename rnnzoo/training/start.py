"""From Python arguments to a run: what `rnnzoo.training.train` does."""

import dataclasses
import os
from typing import Any

from ml_collections import ConfigDict
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.training import checks
from rnnzoo.training import config as config_lib
from rnnzoo.training import loop
from rnnzoo.training.processes import lock


def from_settings(task, dataset, workdir, initial, settings) -> dict[str, Any]:
  """See `rnnzoo.training.train`."""
  if not hasattr(task, 'bind') or isinstance(task, type):
    raise errors.UserValueError(
        '`task` must be a task with the config of its model, such as '
        'tasks.Classification(models.ModelConfig()), got '
        f'{fields.shown(task)}.'
    )
  if not hasattr(dataset, 'train_iterator'):
    raise errors.UserValueError(
        '`dataset` must be a data set, such as data.from_arrays(x, y, '
        f'batch_size=32), got {fields.shown(type(dataset))}.'
    )
  if not workdir or not isinstance(workdir, (str, os.PathLike)):
    raise errors.UserValueError(
        '`workdir` must be the name of a directory, got '
        f'{fields.shown(workdir)}.'
    )
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
    return loop.train(task, dataset, config, workdir, initial)


def with_parts(config, task, dataset) -> ConfigDict:
  """Returns a config with the parts `model` and `data`."""
  config = ConfigDict(config.to_dict())
  model = dataclasses.asdict(task.model)
  config.model = ConfigDict(model)
  config.data = ConfigDict(dict(dataset.config) or dict(name=dataset.name))
  return config
