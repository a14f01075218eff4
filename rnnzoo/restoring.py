"""A model from the workdir of a run, ready to call.

>>> import rnnzoo
>>> model = rnnzoo.restore('runs/quickstart')  # doctest: +SKIP
>>> carry, logits = model(tokens)              # doctest: +SKIP
"""

import os
import pathlib
from typing import Any, NamedTuple

from flax import nnx
import jax
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo import models
from rnnzoo import tasks as tasks_lib
from rnnzoo.data import vocabulary as vocabularies
from rnnzoo.tasks import base
from rnnzoo.tasks import registry
from rnnzoo.training import checkpoint
from rnnzoo.training import evaluation
from rnnzoo.training import memory
from rnnzoo.training import records
from rnnzoo.training import state as state_lib

Layers = base.Layers
Tasks = registry.Tasks


class Run(NamedTuple):
  """A model and where it comes from.

  Attributes:
    model: The model, with the parameters of the checkpoint.
    vocabulary: How text becomes tokens, or `None` where there is no text.
    config: The run's config, nested dictionaries.
    step: The step of the checkpoint.
    data: Identifies the data of the training, see `data.Dataset.source`;
      `None` in old checkpoints.
    task: The kind of task, with the model's config.
  """

  model: nnx.Module
  vocabulary: vocabularies.Vocabulary | None
  config: dict[str, Any]
  step: int
  data: dict[str, Any] | None = None
  task: base.Task | None = None


def restore(
    workdir,
    *,
    step: int | None = None,
    best: bool = True,
    layers: Layers | None = None,
    tasks: Tasks | None = None,
) -> nnx.Module:
  """Restores the model of a run.

  The model is the one that the run trained, such as a `models.LanguageModel`
  or a `models.SequenceClassifier`. It is called like any model of
  `rnnzoo.models`: `carry, y = model(inputs)`, then
  `carry, y = model.step(carry, next_input)`.
  `restore_run` gives the vocabulary and the config too.

  Args:
    workdir: The run's directory. Nothing in it is changed.
    step: The step of the checkpoint; the best one if `None`.
    best: Whether `step=None` means the checkpoint with the best validation
      result, or else the latest one.
    layers: By name, the layers that the run's config file defined itself.
    tasks: By name, the kinds of task that the run's config file defined itself.

  Returns:
    The model, on the first device. If the run kept a moving average of its
    parameters, the model has that.

  Raises:
    UserFileNotFoundError: If there is no such checkpoint.
    UserError: If it cannot be read, or a layer is missing.
  """
  return restore_run(
      workdir, step=step, best=best, layers=layers, tasks=tasks
  ).model


def restore_run(
    workdir,
    *,
    step: int | None = None,
    best: bool = True,
    layers: Layers | None = None,
    tasks: Tasks | None = None,
) -> Run:
  """Restores the model of a run with its vocabulary and config.

  Args:
    workdir: See `restore`, like all the others.
    step: Of the checkpoint.
    best: Whether that is the best, else the latest.
    layers: Layers of the run's own.
    tasks: Kinds of task of the run's own.

  Returns:
    A `Run`.

  Raises:
    UserFileNotFoundError: If there is no such checkpoint.
    UserError: If it cannot be read, or a layer is missing.
  """
  workdir = filenames.absolute(workdir)
  directory = os.path.join(workdir, 'checkpoints')
  if '://' not in directory and not pathlib.Path(directory).is_dir():
    raise errors.UserFileNotFoundError(
        f'There is no run in {workdir}: it has no directory "checkpoints".'
    )
  with checkpoint.Checkpointer(directory, readonly=True) as checkpoints:
    found, meta = checkpoints.restore_meta(step=step, best=best)
    records.check_meta(
        meta, ('model', 'config', 'vocabulary'),
        f'Checkpoint {found} in {directory}',
    )
    own = base.own_layers(meta.get('layers', {}), layers or {}, workdir)
    # Checkpoints from before there were kinds are of language models.
    kind = tasks_lib.find(meta.get('task', 'language_modelling'), tasks)
    task = kind(models.ModelConfig.from_dict(meta['model']), own)
    functional = task.functional
    params = evaluation.parameters_name(meta['config'])
    abstract = jax.eval_shape(state_lib.at_least_float32, {
        params: functional.params, 'batch_stats': functional.batch_stats
    })
    memory.check(
        abstract, 'The parameters', 'Use a device with more memory.'
    )
    with memory.readable_errors():
      found, state, meta = checkpoints.restore(
          abstract, step=step, best=best, partial=True
      )
  vocabulary = meta['vocabulary']
  return Run(
      model=functional.merge(state[params], state['batch_stats']),
      vocabulary=vocabulary and vocabularies.Vocabulary.from_json(vocabulary),
      config=meta['config'],
      step=found,
      data=meta.get('data'),
      task=task,
  )
