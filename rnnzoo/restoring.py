"""A model from the workdir of a run, ready to call.

>>> import rnnzoo
>>> model = rnnzoo.restore('runs/quickstart')  # doctest: +SKIP
>>> carry, logits = model(tokens)              # doctest: +SKIP
"""

from collections.abc import Callable, Iterable, Mapping
import hashlib
import inspect
import os
import pathlib
from typing import Any, NamedTuple

from absl import logging
import jax
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo import models
from rnnzoo.data import vocabulary as vocabularies
from rnnzoo.training import checkpoint
from rnnzoo.training import evaluation
from rnnzoo.training import memory
from rnnzoo.training import records
from rnnzoo.training import state as state_lib

Layers = Mapping[str, Callable[..., Any]]


class Run(NamedTuple):
  """A model and where it comes from.

  Attributes:
    model: The model, with the parameters of the checkpoint.
    vocabulary: How text becomes tokens, or `None` where there is no text.
    config: The run's config, nested dictionaries.
    step: The step of the checkpoint.
    data: What tells the data that it was trained on, see `data.Dataset.source`;
      `None` in old checkpoints.
  """

  model: models.LanguageModel
  vocabulary: vocabularies.Vocabulary | None
  config: dict[str, Any]
  step: int
  data: dict[str, Any] | None = None


def restore(
    workdir,
    *,
    step: int | None = None,
    best: bool = True,
    layers: Layers | None = None,
) -> models.LanguageModel:
  """Restores the model of a run.

  It is called like any model of `rnnzoo.models`:
  `carry, logits = model(tokens)`, then
  `carry, logits = model.step(carry, token)`.
  `restore_run` gives the vocabulary too.

  Args:
    workdir: The run's directory. Nothing in it is changed.
    step: Of the checkpoint; by default the best one.
    best: Whether that is the checkpoint of the lowest validation loss, else the
      latest.
    layers: By name, the layers that the run's config file brought itself.

  Returns:
    The model, on the first device. If the run kept a moving average of its
    parameters, the model has that.

  Raises:
    UserFileNotFoundError: If there is no such checkpoint.
    UserError: If it cannot be read, or a layer is missing.
  """
  return restore_run(workdir, step=step, best=best, layers=layers).model


def restore_run(
    workdir,
    *,
    step: int | None = None,
    best: bool = True,
    layers: Layers | None = None,
) -> Run:
  """Restores the model of a run with its vocabulary and config.

  Args:
    workdir: See `restore`, like all the others.
    step: Of the checkpoint.
    best: Whether that is the best, else the latest.
    layers: Layers of the run's own.

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
    own = _own_layers(meta.get('layers', {}), layers or {}, workdir)
    model_config = models.ModelConfig.from_dict(meta['model'])
    functional = state_lib.Functional(
        lambda rngs: models.LanguageModel(model_config, own, rngs=rngs)
    )
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
  )


def describe_layers(
    names: Iterable[str], layers: Layers | None
) -> dict[str, str | None]:
  """Returns the layers that a run brings itself, for its checkpoints.

  Args:
    names: The layers that the model has.
    layers: The run's own by name.

  Returns:
    By name, the SHA-256 of the source, or `None` where Python cannot find it.
  """
  own = sorted(set(names) & set(layers or {}))
  return {name: _source_digest(layers[name]) for name in own}


def _source_digest(layer) -> str | None:
  try:
    source = inspect.getsource(layer)
  except (OSError, TypeError):  # Typed in at a prompt, or no function or class.
    return None
  return hashlib.sha256(source.encode()).hexdigest()


def _own_layers(recorded, layers: Layers, workdir) -> Layers:
  """Returns those of `layers` that the run had; warns if one has changed."""
  for name, digest in recorded.items():
    if name not in layers:
      raise errors.UserValueError(
          f'The run in {workdir} has a layer of its own, {name!r}. Pass '
          f'layers={{{name!r}: ...}}, or --layers with the config file that '
          'exports it.'
      )
    now = _source_digest(layers[name])
    if digest and now and digest != now:
      logging.warning(
          'The source of layer %r is not what it was when %s was trained.',
          name, workdir,
      )
  return {name: layers[name] for name in recorded}
