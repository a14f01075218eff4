"""From a config to a model and its data: where the floors meet."""

import dataclasses
import json
import pathlib

from ml_collections import ConfigDict
from rnnzoo import data as data_lib
from rnnzoo import errors
from rnnzoo import models
from rnnzoo.training import loop
from rnnzoo.training import losses
from rnnzoo.training import state as state_lib


def resolve(config) -> ConfigDict:
  """Returns a copy of `config` with its smoke overrides applied, if it asks."""
  config = ConfigDict(config.to_dict())
  if config.smoke:
    with config.ignore_type():
      config.lock()
      config.update(config.smoke_overrides)
  return config


def build_model(model_config, layers=None):
  """Returns a function that builds the language model from `nnx.Rngs`."""
  return lambda rngs: models.LanguageModel(model_config, layers, rngs=rngs)


def make_task(config, layers=None, *, process_index=0, process_count=1):
  """Builds the task of a config.

  Args:
    config: A resolved config; `model.vocab_size` is set from the data.
    layers: Layers by name, beside those of the zoo.
    process_index: This process.
    process_count: Of so many.

  Returns:
    `(task, dataset)`.

  Raises:
    UserError: If the config or the data is at fault.
  """
  dataset = data_lib.load(
      config.data,
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
  model_config = models.ModelConfig.from_dict(config.model.to_dict())
  functional = state_lib.Functional(build_model(model_config, layers))
  initial_carry = None
  if config.stateful:
    if not config.data.get('contiguous'):
      raise errors.UserValueError('stateful needs data.contiguous=True.')
    rngs_free = lambda: functional.merge(
        functional.params, functional.batch_stats
    ).initialize_carry(config.batch_size)
    initial_carry = rngs_free
  meta = dict(
      config=config.to_dict(),
      vocabulary=dataset.vocabulary and dataset.vocabulary.to_json(),
      model=dataclasses.asdict(model_config),
  )
  task = loop.Task(
      functional=functional,
      loss=losses.next_token_loss,
      train_iterator=dataset.train_iterator,
      eval_batches=dataset.eval_batches,
      initial_carry=initial_carry,
      meta=meta,
  )
  return task, dataset


def open_workdir(workdir, config) -> pathlib.Path:
  """Makes the workdir, or checks that it belongs to a run of this config.

  Raises:
    UserValueError: If it does not.
  """
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / 'config.json'
  new = json.loads(config.to_json())
  if path.exists():
    loop.check_same_config(json.loads(path.read_text()), new)
  path.write_text(json.dumps(new, indent=2, sort_keys=True) + '\n')
  return workdir
