"""All fields of a config, and the check of the whole of it before a run starts.

Each part of the package describes the fields that it reads, see
`rnnzoo/fields.py`; this is where they come together. The defaults are in
configs/default.py.
"""

from ml_collections import ConfigDict
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import models
from rnnzoo.data import loading
from rnnzoo.models import config as model_config
from rnnzoo.training import checks
from rnnzoo.training import optimizers

# The parts of a config that have fields of their own.
PARTS = ('data', 'mesh', 'model', 'optimizer')
FIELDS = dict(
    checks.FIELDS,
    **{f'data.{name}': field for name, field in loading.FIELDS.items()},
    **{f'model.{name}': field for name, field in model_config.FIELDS.items()},
    **{
        f'optimizer.{name}': field
        for name, field in optimizers.FIELDS.items()
    },
    # They are checked in the config that they lead to.
    smoke_overrides=fields.Field(dict),
)
# The other fields of `data` have defaults where they are read.
_NEEDED = ('data.name', 'data.sequence_length')


def check(config: ConfigDict):
  """Checks that a config has all fields, no others, and no wrong values.

  Args:
    config: A config, its overrides applied.

  Raises:
    UserValueError: If not.
  """
  values = config.to_dict()
  for part in PARTS:
    fields.check(part, values.get(part), fields.Field(dict))
  flat = flatten(values)
  fields.check_names(flat, FIELDS)
  for name in FIELDS:
    optional = name.startswith('data.') and name not in _NEEDED
    if name not in flat and not optional:
      raise errors.UserValueError(
          f'The config has no field {name}. A config file should change the '
          'config of experiments/configs/default.py, which has all of them.'
      )
  fields.check('smoke_overrides', values['smoke_overrides'], fields.Field(dict))
  # For `loading.load`, `None` is as good as no value.
  data = {
      name: value for name, value in values['data'].items()
      if value is not None or f'data.{name}' in _NEEDED
  }
  fields.check_all(data, loading.FIELDS, 'data.')
  models.ModelConfig.from_dict(values['model'])
  checks.check(config)


def data_values(data) -> dict:
  """Returns the fields of `config.data` that its data set has."""
  known = loading.find(data.name).all_fields
  return {name: value for name, value in data.items() if name in known}


def flatten(values) -> dict:
  """Returns the values of a nested config by names such as `model.layer`."""
  flat = {name: v for name, v in values.items() if name not in PARTS}
  for part in PARTS:
    flat |= {f'{part}.{name}': v for name, v in values[part].items()}
  return flat
