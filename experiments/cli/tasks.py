"""Builds the task of a config and loads its data."""

import json
import pathlib

from absl import logging
from experiments.cli import schema
from experiments.cli.config_flag import NO_EXPORTS
from experiments.cli.config_flag import Exports
from experiments.configs import default
from ml_collections import ConfigDict
from rnnzoo import convert
from rnnzoo import data as data_lib
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo import tasks as tasks_lib
from rnnzoo.data import settings
from rnnzoo.data import vocabulary as vocabularies
from rnnzoo.training import checks
from rnnzoo.training import config as training_config
from rnnzoo.training import records

# The command that trains a config, by `schema.source_of` the config.
PPO = 'experiments.ppo'
COMMANDS = dict(
    data='experiments.train', environment=PPO, stream='experiments.online',
    streaming='experiments.streaming',
)


def resolve(
    config, exports: Exports = NO_EXPORTS, *, source: str = 'data'
) -> ConfigDict:
  """Returns a copy of `config`, with its smoke overrides if it asks for them.

  Args:
    config: The config, its overrides applied.
    exports: What the config file brings.
    source: What `schema.source_of` the config must be.

  Raises:
    UserError: If the config is wrong, see schema.py.
  """
  if (found := schema.source_of(config)) != source:
    raise errors.UserValueError(
        f'--config is of another program: train it by {COMMANDS[found]}.'
    )
  config = ConfigDict(config.to_dict())
  schema.check(config, exports)
  if config.smoke:
    config.lock()
    try:
      with config.ignore_type():
        config.update(config.smoke_overrides)
    except (AttributeError, KeyError, TypeError) as error:
      raise errors.UserValueError(
          f'smoke_overrides: {error.args[0]}'
      ) from error
    schema.check(config, exports)
  return config


def make_task(
    config, exports: Exports = NO_EXPORTS, *, process_index=0, process_count=1
):
  """Builds the task of a config and loads its data.

  Args:
    config: A resolved config; sizes of the model are set from the data.
    exports: What the config file brings: layers, data sets, kinds of task.
    process_index: Which rows of each batch to read, see `multihost.data_shard`.
    process_count: The number of parts that a batch has.

  Returns:
    `(task, dataset)`.

  Raises:
    UserError: If the config or the data is wrong.
  """
  dataset = load_data(
      config, exports, process_index=process_index, process_count=process_count
  )
  task = task_of(config, dataset.task, exports).bind(dataset)
  for name in task.sizes(dataset):
    config.model[name] = getattr(task.model, name)
  training_config.check_fits(config, dataset)
  return task, dataset


def task_of(config, kind: str, exports: Exports = NO_EXPORTS) -> tasks_lib.Task:
  """Returns the task of a config, without the sizes that the data sets.

  Args:
    config: A resolved config.
    kind: The kind that the data set is for; `config.task` wins if it is set.
    exports: What the config file brings.
  """
  kind = tasks_lib.find(config.task or kind, exports.tasks)
  return kind.from_config(config, exports.layers)


def load_data(config, exports: Exports = NO_EXPORTS, **shard):
  """Loads the data of a config. A smoke run generates data that is missing.

  Raises:
    UserError: If the data is missing or wrong.
  """
  load = lambda: data_lib.load(
      config.data, batch_size=config.batch_size, seed=config.seed,
      datasets=exports.datasets, **shard,
  )
  definition = data_lib.find(config.data.name, exports.datasets)
  if not config.smoke or definition.write_fixture is None:
    return load()
  try:
    return load()
  except errors.UserFileNotFoundError as missing:
    directory = settings.fixture_directory(config.data)
    logging.warning(
        'SMOKE RUN ON GENERATED DATA: %s Small files of the same layout are '
        'written to %s; results say nothing about the real data.', missing,
        directory,
    )
    definition.write_fixture(
        directory, definition.checked(config.data.name, config.data)
    )
    config.data.data_dir = str(directory)
    return load()


def initial(config, dataset):
  """Returns what loads the pretrained model that a run starts from, or `None`.

  Args:
    config: A resolved config.
    dataset: Its data.

  Raises:
    UserValueError: If the text has another vocabulary than the model.
  """
  folder = config.init_from
  if not folder or not convert.is_pretrained(folder):
    return None
  file = pathlib.Path(filenames.absolute(folder), convert.loading.TOKENIZER)
  if file.exists():
    own = vocabularies.Vocabulary('bpe', file.read_text(encoding='utf-8'))
    checks.check_vocabulary(
        dataset.vocabulary and dataset.vocabulary.to_json(), own.to_json(),
        f'init_from={folder}',
    )
  return lambda mesh: convert.load_pretrained(folder, mesh=mesh)


def load_data_of_run(
    run, config, exports: Exports = NO_EXPORTS, *, allow_changed=False, **shard
):
  """Loads the data of a restored run, if it is what it was.

  Args:
    run: From `restoring.restore_run`.
    config: From `of_run`.
    exports: What the config file of the run brings.
    allow_changed: Whether other data of the same vocabulary will do.
    **shard: See `make_task`.

  Raises:
    UserError: If the data is missing, wrong or another.
  """
  dataset = load_data(config, exports, **shard)
  checks.check_vocabulary(
      dataset.vocabulary and dataset.vocabulary.to_json(),
      run.vocabulary and run.vocabulary.to_json(),
  )
  checks.check_data(
      dataset.source, run.data, 'allow the new data: --allow_changed',
      allow_changed,
  )
  return dataset


def defaults(name: str, exports: Exports = NO_EXPORTS) -> dict:
  """Returns the default of every field of a config with this data set."""
  config = default.get_config()
  config.data = default.data(name, exports.datasets)
  return json.loads(config.to_json())


def open_workdir(
    workdir, config, exports: Exports = NO_EXPORTS
) -> pathlib.Path:
  """Makes the workdir, or checks that it belongs to a run of this config.

  Raises:
    UserValueError: If it does not.
  """
  return checks.open_workdir(
      workdir, config, defaults(config.data.name, exports)
  )


def of_run(config, exports: Exports = NO_EXPORTS) -> ConfigDict:
  """Returns the config of a run, with the fields that it is too old to have.

  Args:
    config: The config in the checkpoint.
    exports: What the config file of the run brings.

  Raises:
    UserValueError: If the config is damaged, or the data is not of a data set
      with a name.
  """
  base = json.loads(default.get_config().to_json())
  try:
    records.check_tree(config, base)
  except ValueError as error:
    raise errors.UserValueError(
        f'The config in the checkpoint is {error}.'
    ) from error
  found = config.get('data', base['data'])
  name = found.get('name', base['data']['name'])
  if found == dict(name=name) and name not in data_lib.DATASETS:
    raise errors.UserValueError(
        f'The run was trained from Python on arrays ({name}), which no command '
        'can load. Its summary.json has the test result; rnnzoo.restore gives '
        'the model.'
    )
  known = defaults(name, exports)
  filled = checks.filled_up(config, known, known)
  # Older configs held the fields of all data sets.
  filled['data'] = {
      n: v for n, v in filled['data'].items() if n in known['data']
  }
  return ConfigDict(filled)
