"""All fields of a config, and the check of the whole config before a run.

Each part of the package describes the fields that it reads, see
`rnnzoo/fields.py`. This module puts the parts together.
"""

from experiments.cli.config_flag import NO_EXPORTS
from experiments.cli.config_flag import Exports
from ml_collections import ConfigDict
from rnnzoo import data as data_lib
from rnnzoo import environments
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import models
from rnnzoo import tasks as tasks_lib
from rnnzoo.models import config as model_config
from rnnzoo.online import regression
from rnnzoo.online import streams
from rnnzoo.rl import config as rl_config
from rnnzoo.rl import streaming
from rnnzoo.training import config as training_config
from rnnzoo.training import optimizers

# The parts of a config that have fields of their own.
PARTS = ('data', 'environment', 'stream', 'model', 'optimizer', 'mesh')
_SMOKE = dict(
    smoke=fields.Field(
        bool, help='Make the run so small that it takes seconds.'
    ),
    # They are checked in the config that they lead to.
    smoke_overrides=fields.Field(
        dict, help='The fields that smoke changes, and their values.'
    ),
)
_SHARED = dict(
    **{f'model.{name}': field for name, field in model_config.FIELDS.items()},
    **{
        f'optimizer.{name}': field
        for name, field in optimizers.FIELDS.items()
    },
    **_SMOKE,
)
# Of experiments.train, apart from the data set.
FIELDS = training_config.FIELDS | _SHARED | dict(
    task=fields.Field(
        str, help='The kind of task. If empty, the data set decides.'
    ),
    preset=fields.Field(
        str, help='A published model, such as mamba_130m, which sets model.*.'
    ),
)
# Of experiments.ppo, apart from the environment.
RL_FIELDS = rl_config.FIELDS | _SHARED
# Of experiments.streaming, apart from the environment.
STREAMING_FIELDS = streaming.FIELDS | _SMOKE
# Of experiments.online.
ONLINE_FIELDS = regression.FIELDS | _SMOKE | {
    f'stream.{name}': field for name, field in streams.FIELDS.items()
}


def check(config: ConfigDict, exports: Exports = NO_EXPORTS):
  """Checks that a config has all fields, no others, and no wrong values.

  Args:
    config: A config, its overrides applied.
    exports: What the config file brings: data sets and kinds of task.

  Raises:
    UserValueError: If not.
  """
  values, source = config.to_dict(), source_of(config)
  has = dict(
      data=('model', 'optimizer', 'mesh'), environment=('model', 'optimizer'),
      streaming=(), stream=(),
  )
  first = 'environment' if source == 'streaming' else source
  for part in PARTS:
    if part in (first, *has[source]):
      fields.check(part, values.get(part), fields.Field(dict))
  if 'name' not in values[first]:
    raise errors.UserValueError(f'The config has no field {first}.name.')
  known = fields_of(config, exports)
  flat = flatten(values)
  file = dict(
      data='default.py', environment='rl/settings.py',
      streaming='rl/settings.py', stream='online/settings.py',
  )[source]
  fields.check_names(flat, known)
  for name in known:
    if name not in flat:
      raise errors.UserValueError(
          f'The config has no field {name}. A config file should change the '
          f'config of experiments/configs/{file}, which has all of them.'
      )
  for name in ('task', 'preset', 'smoke', 'smoke_overrides'):
    if name in known:
      fields.check(name, values[name], known[name])
  if source == 'stream':
    regression.check(values)
    return
  if first == 'environment':
    for name, value in values['environment'].items():
      fields.check(f'environment.{name}', value, known[f'environment.{name}'])
  if source == 'streaming':
    streaming.check(values)
    return
  if source == 'environment':
    models.ModelConfig.from_dict(values['model'])
    rl_config.check(config)
    return
  if config.task:
    tasks_lib.find(config.task, exports.tasks)
  for name, value in values['data'].items():
    # For `data.load`, `None` means the default.
    if value is not None or name in ('name', 'sequence_length'):
      fields.check(f'data.{name}', value, known[f'data.{name}'])
  models.ModelConfig.from_dict(values['model'])
  training_config.check(config)


def source_of(config: ConfigDict) -> str:
  """Returns where the numbers of a config come from.

  That is a part of the config, `data`, `environment` or `stream`; and
  `streaming` where learners stand beside an environment.
  """
  if 'environment' in config:
    return 'streaming' if 'learners' in config else 'environment'
  return 'stream' if 'stream' in config else 'data'


def fields_of(config: ConfigDict, exports: Exports = NO_EXPORTS):
  """Returns all fields of a config, those of its data or environment too."""
  source = source_of(config)
  if source == 'stream':
    return ONLINE_FIELDS
  if 'environment' in config:
    name = fields.Field(str, help='The environment, by its name.')
    own = dict(name=name) | environments.fields_of(config.environment.name)
    shared = STREAMING_FIELDS if source == 'streaming' else RL_FIELDS
    return shared | {f'environment.{n}': field for n, field in own.items()}
  return FIELDS | {
      f'data.{name}': field
      for name, field in data_fields(config.data.name, exports).items()
  }


def data_fields(name: str, exports: Exports = NO_EXPORTS):
  """Returns the fields of a data set, with those that all data sets have."""
  return data_lib.find(name, exports.datasets).all_fields


def flatten(values) -> dict:
  """Returns the values of a nested config by names such as `model.layer`."""
  flat = {name: v for name, v in values.items() if name not in PARTS}
  for part in PARTS:
    flat |= {f'{part}.{name}': v for name, v in values.get(part, {}).items()}
  return flat
