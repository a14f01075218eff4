"""From a config to a model and its data: where the floors meet."""

import dataclasses
import functools
import json
import pathlib

from absl import logging
from experiments import schema
from experiments.configs import default
import jax
from ml_collections import ConfigDict
from rnnzoo import data as data_lib
from rnnzoo import errors
from rnnzoo import layers as layers_lib
from rnnzoo import models
from rnnzoo import restoring
from rnnzoo.training import checks
from rnnzoo.training import files
from rnnzoo.training import loop
from rnnzoo.training import losses
from rnnzoo.training import records
from rnnzoo.training import state as state_lib


def resolve(config) -> ConfigDict:
  """Returns a copy of `config`, its smoke overrides applied if it asks.

  Raises:
    UserError: If the config is at fault, see schema.py.
  """
  config = ConfigDict(config.to_dict())
  schema.check(config)
  if config.smoke:
    config.lock()
    try:
      with config.ignore_type():
        config.update(config.smoke_overrides)
    except (AttributeError, KeyError, TypeError) as error:
      raise errors.UserValueError(
          f'smoke_overrides: {error.args[0]}'
      ) from error
    schema.check(config)
  return config


def build_model(model_config, layers=None):
  """Returns a function that builds the language model from `nnx.Rngs`."""
  return lambda rngs: models.LanguageModel(model_config, layers, rngs=rngs)


def make_task(config, layers=None, *, process_index=0, process_count=1):
  """Builds the task of a config.

  Args:
    config: A resolved config; `model.vocab_size` is set from the data.
    layers: Layers by name, beside those of the zoo.
    process_index: Which rows of each batch to read, see `multihost.data_shard`.
    process_count: Of so many parts.

  Returns:
    `(task, dataset)`.

  Raises:
    UserError: If the config or the data is at fault.
  """
  dataset = data_lib.load(
      schema.data_values(config.data),
      batch_size=config.batch_size,
      seed=config.seed,
      process_index=process_index,
      process_count=process_count,
  )
  for split in config.eval_splits:
    if split not in dataset.eval_splits:
      raise errors.UserValueError(
          f'eval_splits: {dataset.name} has no split {split!r}, only '
          f'{", ".join(dataset.eval_splits)}.'
      )
  config.model.vocab_size = dataset.vocab_size
  task = model_task(config, layers)
  model_config = models.ModelConfig.from_dict(config.model.to_dict())
  meta = dict(
      config=config.to_dict(),
      vocabulary=dataset.vocabulary and dataset.vocabulary.to_json(),
      data=dataset.source,
      model=dataclasses.asdict(model_config),
      layers=restoring.describe_layers(model_config.layer_names, layers),
  )
  task = dataclasses.replace(
      task,
      train_iterator=dataset.train_iterator,
      eval_batches=dataset.eval_batches,
      meta=meta,
  )
  return task, dataset


def model_task(config, layers=None) -> loop.Task:
  """Returns the task of a config, `model.vocab_size` set, without its data.

  Raises:
    UserError: If the config is at fault.
  """
  model_config = models.ModelConfig.from_dict(config.model.to_dict())
  initial_carry = None
  if config.stateful:
    if not config.data.get('contiguous'):
      raise errors.UserValueError('stateful needs data.contiguous=True.')
    initial_carry = lambda model: model.initialize_carry(config.batch_size)
  if config.mesh.sequence != 1:
    _warn_of_gathers(config.mesh.sequence, model_config.layer_names, layers)
  return loop.Task(
      functional=state_lib.Functional(build_model(model_config, layers)),
      loss=functools.partial(
          losses.next_token_loss, chunk=config.loss_chunk
      ),
      train_iterator=None,
      eval_batches=None,
      initial_carry=initial_carry,
      meta={},
  )


def _warn_of_gathers(devices, names, layers):
  known = dict(layers_lib.LAYERS, **(layers or {}))
  gather = sorted(
      name for name in set(names)
      if getattr(known.get(name), 'gathers_time', False)
  )
  if gather:
    logging.warning(
        'mesh.sequence=%d: %s cannot be computed in stretches of time, so '
        'every device gathers whole sequences for it. Only what lies between '
        'is shared; mesh.data, mesh.fsdp and mesh.model share all.',
        devices, ', '.join(gather),
    )


def open_workdir(workdir, config) -> pathlib.Path:
  """Makes the workdir, or checks that it belongs to a run of this config.

  Raises:
    UserValueError: If it does not.
  """
  workdir = files.workdir(workdir)
  path = workdir / 'config.json'
  new = json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True)
  with files.usable(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    old = path.read_bytes() if path.is_file() else None
    # Without a checkpoint there is nothing yet that another config could spoil.
    checkpoints = [p.name for p in workdir.glob('checkpoints/*')]
    if old is not None and any(name.isdecimal() for name in checkpoints):
      now = json.loads(new)
      then = records.read_config(path, now)
      checks.check_same_config(_filled_up(then, now), now)
    if old != (new + '\n').encode() and jax.process_index() == 0:
      files.write_text(path, new + '\n')
  return workdir


def of_run(config) -> ConfigDict:
  """Returns the config of a run, which may be older than some fields."""
  defaults = json.loads(default.get_config().to_json())
  try:
    records.check_tree(config, defaults)
  except ValueError as error:
    raise errors.UserValueError(
        f'The config in the checkpoint is {error}.'
    ) from error
  return ConfigDict(_filled_up(config, defaults, defaults))


def _filled_up(old, new, defaults=None):
  """Returns `old` with the default of each field that only `new` has."""
  if defaults is None:
    defaults = json.loads(default.get_config().to_json())
  filled = dict(old)
  for name in new.keys() & defaults.keys():
    if isinstance(defaults[name], dict) and not name.endswith('options'):
      filled[name] = _filled_up(old.get(name, {}), new[name], defaults[name])
    elif name not in old:
      filled[name] = defaults[name]
  return filled
