"""All fields of a config, and the check of the whole config before a run.

Each part of the package describes the fields that it reads, see
`rnnzoo/fields.py`. This module puts the parts together.
"""

from experiments.cli.config_flag import NO_EXPORTS
from experiments.cli.config_flag import Exports
from ml_collections import ConfigDict
from rnnzoo import data as data_lib
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import models
from rnnzoo import tasks as tasks_lib
from rnnzoo.models import config as model_config
from rnnzoo.training import config as training_config
from rnnzoo.training import optimizers

# The parts of a config that have fields of their own.
PARTS = ('data', 'mesh', 'model', 'optimizer')
FIELDS = dict(
    training_config.FIELDS,
    **{f'model.{name}': field for name, field in model_config.FIELDS.items()},
    **{
        f'optimizer.{name}': field
        for name, field in optimizers.FIELDS.items()
    },
    task=fields.Field(
        str, help='The kind of task. If empty, the data set decides.'
    ),
    preset=fields.Field(
        str, help='A published model, such as mamba_130m, which sets model.*.'
    ),
    smoke=fields.Field(
        bool, help='Make the run so small that it takes seconds.'
    ),
    # They are checked in the config that they lead to.
    smoke_overrides=fields.Field(
        dict, help='The fields that smoke changes, and their values.'
    ),
)


def check(config: ConfigDict, exports: Exports = NO_EXPORTS):
  """Checks that a config has all fields, no others, and no wrong values.

  Args:
    config: A config, its overrides applied.
    exports: What the config file brings: data sets and kinds of task.

  Raises:
    UserValueError: If not.
  """
  values = config.to_dict()
  for part in PARTS:
    fields.check(part, values.get(part), fields.Field(dict))
  if 'name' not in values['data']:
    raise errors.UserValueError('The config has no field data.name.')
  known = FIELDS | {
      f'data.{name}': field
      for name, field in data_fields(values['data']['name'], exports).items()
  }
  flat = flatten(values)
  fields.check_names(flat, known)
  for name in known:
    if name not in flat:
      raise errors.UserValueError(
          f'The config has no field {name}. A config file should change the '
          'config of experiments/configs/default.py, which has all of them.'
      )
  for name in ('task', 'preset', 'smoke', 'smoke_overrides'):
    fields.check(name, values[name], FIELDS[name])
  if config.task:
    tasks_lib.find(config.task, exports.tasks)
  for name, value in values['data'].items():
    # For `data.load`, `None` means the default.
    if value is not None or name in ('name', 'sequence_length'):
      fields.check(f'data.{name}', value, known[f'data.{name}'])
  models.ModelConfig.from_dict(values['model'])
  training_config.check(config)


def data_fields(name: str, exports: Exports = NO_EXPORTS):
  """Returns the fields of a data set, with those that all data sets have."""
  return data_lib.find(name, exports.datasets).all_fields


def flatten(values) -> dict:
  """Returns the values of a nested config by names such as `model.layer`."""
  flat = {name: v for name, v in values.items() if name not in PARTS}
  for part in PARTS:
    flat |= {f'{part}.{name}': v for name, v in values[part].items()}
  return flat
