"""What every kind of task provides. The training loop knows nothing else."""

import abc
from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import inspect
from typing import Any, ClassVar

from absl import logging
from flax import nnx
import jax
import numpy as np
from rnnzoo import errors
from rnnzoo import layers as layers_lib
from rnnzoo import models
from rnnzoo.models import building
from rnnzoo.training import state as state_lib

Layers = Mapping[str, Callable[..., Any]]
Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
  """A kind of task together with the model that it trains.

  A subclass sets the class attributes and five methods: `sizes`, `build`,
  `forward`, `predict` and `sentence`.

  Attributes:
    model: The configuration of the model. `bind` fills in the sizes that depend
      on the data.
    layers: Layers by name, beside those of the zoo.
  """

  model: models.ModelConfig = dataclasses.field(
      default_factory=models.ModelConfig
  )
  layers: Layers | None = None

  # The key in `TASKS`, which every checkpoint records.
  name: ClassVar[str]
  # The metric that chooses the best checkpoint, and its better direction.
  best: ClassVar[str] = 'loss'
  best_mode: ClassVar[str] = 'min'
  # The metrics that should grow; all others should fall.
  larger_is_better: ClassVar[tuple[str, ...]] = ('accuracy',)
  # How many sequences an example has, see `models.PairClassifier`.
  sequences: ClassVar[int] = 1
  # Whether the targets are the steps after the inputs, see `Dataset.horizon`.
  forecasts: ClassVar[bool] = False
  # What each metric is measured in, for plots.
  units: ClassVar[Mapping[str, str]] = {}

  @classmethod
  def from_config(cls, config, layers: Layers | None = None) -> 'Task':
    """Returns the task of an experiment's config.

    Args:
      config: See `experiments/configs/default.py`.
      layers: Layers by name, beside those of the zoo.

    Raises:
      UserValueError: If `config.model` is wrong.
    """
    return cls(models.ModelConfig.from_dict(config.model.to_dict()), layers)

  @abc.abstractmethod
  def sizes(self, dataset) -> dict[str, Any]:
    """Returns the fields of the model's config that the data set decides."""

  @abc.abstractmethod
  def build(self, rngs: nnx.Rngs) -> nnx.Module:
    """Returns a new model."""

  @abc.abstractmethod
  def forward(
      self, model, batch, carry, *, train: bool, key
  ) -> tuple[Any, Sums]:
    """Runs the model on a batch.

    Args:
      model: What `build` returned, with its parameters.
      batch: Arrays by name, see `rnnzoo.data.Dataset`.
      carry: The recurrent state before the batch; `None` for a new one.
      train: Whether batch norms use and update the batch's statistics.
      key: For dropout; `None` means none.

    Returns:
      `(carry, sums)`: the state after the batch, and float32 scalars, each
      summed over the targets that count: `loss`, further metrics of the kind,
      and `weight`, the number of these targets. Training minimises `loss`.
    """

  @abc.abstractmethod
  def predict(self, model, batch) -> dict[str, jax.Array]:
    """Returns what the model predicts for a batch, `[B, ...]` by name.

    `prediction` is always there and has the shape of the targets.
    """

  @abc.abstractmethod
  def sentence(self, summary: Mapping[str, Any], dataset) -> str:
    """Reports the result of a run in one sentence.

    Args:
      summary: What `training.train` returned.
      dataset: The data set.
    """

  def bind(self, dataset) -> 'Task':
    """Returns this task with the sizes that only the data set knows.

    Raises:
      UserValueError: If the data set is for another kind, the model sees the
        inputs that it should predict, or it cannot take the lengths of steps
        that the data has.
    """
    task = dataclasses.replace(
        self, model=self.model.replace(**self.sizes(dataset))
    ).reading(dataset)
    if (
        not task.outputs or dataset.sequences != task.sequences
        or bool(dataset.horizon) != task.forecasts
    ):
      raise errors.UserValueError(
          f'The kind of task is {self.name}, but {dataset.name} is a data set '
          f'for {dataset.task}.'
      )
    if dataset.irregular:
      _check_timed(task, dataset)
    if dataset.per_step and dataset.forecast:
      _check_causal(task, dataset)
    return task

  def reading(self, dataset) -> 'Task':
    """Returns this task with a model that normalises as the data set asks.

    Old checkpoints know nothing of that, because their data sets did it.
    """
    return dataclasses.replace(self, model=self.model.replace(
        input_offset=dataset.input_offset, input_scale=dataset.input_scale
    ))

  @property
  @abc.abstractmethod
  def outputs(self) -> int:
    """How many numbers the model gives for each target."""

  @classmethod
  def batch_shapes(cls, config) -> dict[str, jax.ShapeDtypeStruct] | None:
    """Returns the shapes of a global batch if the config alone decides them.

    `experiments.train --plan` then needs no data.
    """
    del config
    return None

  @functools.cached_property
  def functional(self) -> state_lib.Functional:
    """The model as pure functions of dictionaries."""
    return state_lib.Functional(self.build)

  def loss_fn(self, *, train: bool):
    """Returns the loss as `training.step.LossFn`.

    In training, the load-balancing loss of experts is added to the loss of each
    target, and is a metric of its own, `balance`.
    """
    functional = self.functional

    def loss_fn(params, batch_stats, batch, carry, key):
      model = functional.merge(params, batch_stats)
      new_carry, sums = self.forward(
          model, batch, carry, train=train, key=key
      )
      _, batch_stats = functional.variables(model)
      carry = None if carry is None else new_carry
      loss, balance = sums['loss'], models.balance_loss(model)
      if train and balance is not None:
        sums = sums | dict(balance=sums['weight'] * balance)
        loss += sums['balance']
      return loss, (sums, batch_stats, carry)

    return loss_fn

  def unit(self, metric: str, dataset) -> str:
    """Returns what a metric is measured in; '' for a plain number."""
    del dataset
    return self.units.get(metric, '')

  def is_as_good(self, metric: str, value: float, wanted: float) -> bool:
    """Whether a metric has reached a value. Losses and errors should fall."""
    if metric in self.larger_is_better:
      return value >= wanted
    return value <= wanted

  def derived(self, means: Mapping[str, float], dataset) -> dict[str, float]:
    """Returns more metrics, computed from the means over a whole split."""
    del means, dataset
    return {}

  def describe(self, means: Mapping[str, float], dataset) -> str:
    """Returns the means over a split as a person reads them."""
    del dataset
    return ', '.join(f'{name} {value:.4f}' for name, value in means.items())

  def details(
      self, predictions: Mapping[str, np.ndarray], dataset
  ) -> list[str]:
    """Returns lines that say more about the predictions of a whole split.

    Args:
      predictions: `prediction`, `target` and `length` of the sequences, and
        what else `predict` gave; object arrays where lengths differ.
      dataset: The data set.
    """
    del predictions, dataset
    return []

  def check_result(self, summary: Mapping[str, Any], dataset, config) -> None:
    """Raises `UserError` if a finished run misses what its config demands."""
    del summary, dataset, config

  def meta(self) -> dict[str, Any]:
    """Returns what a checkpoint records about the task and its model."""
    return dict(
        task=self.name,
        model=dataclasses.asdict(self.model),
        layers=describe_layers(self.model.layers_used, self.layers),
    )

  def warn_of_gathers(self, devices: int) -> None:
    """Warns of layers that need whole sequences on every device.

    Args:
      devices: The size of the mesh axis `sequence`.
    """
    known = dict(layers_lib.LAYERS, **(self.layers or {}))
    gather = sorted(
        name for name in self.model.layers_used
        if getattr(known.get(name), 'gathers_time', False)
    )
    if devices != 1 and gather:
      logging.warning(
          'mesh.sequence=%d: %s cannot be computed in segments of time, so '
          'every device gathers whole sequences for it. Only the other parts '
          'of the model are shared; mesh.data, mesh.fsdp and mesh.model share '
          'everything.', devices, ', '.join(gather),
      )


def pooling(model: models.ModelConfig, dataset) -> str:
  """Returns the pooling that gives one output for each target.

  Args:
    model: The model's config.
    dataset: The data set.

  Raises:
    UserValueError: If the model has an output at every step, and the data set
      one target for a sequence.
  """
  if dataset.per_step:
    return 'none'
  if model.pooling == 'none':
    raise errors.UserValueError(
        f'{dataset.name} has one target for a sequence, so model.pooling must '
        "be mean, last or first, got 'none'."
    )
  return model.pooling


def input_sizes(model: models.ModelConfig, dataset) -> dict[str, Any]:
  """Returns the fields of a model's config that the inputs decide."""
  return dict(
      vocab_size=dataset.vocab_size,
      in_features=dataset.in_features,
      image_shape=dataset.image_shape,
      pooling=pooling(model, dataset),
  )


def side_inputs(batch) -> dict[str, Any]:
  """Returns what a sequence model reads of a batch beside `inputs`."""
  return dict(
      reset=batch.get('reset'), mask=batch.get('input_mask'),
      dt=batch.get('dt'),
  )


def describe_layers(names, layers: Layers | None) -> dict[str, str | None]:
  """Returns the layers that a run brings itself, for its checkpoints.

  Args:
    names: The layers of the model.
    layers: The run's own layers by name.

  Returns:
    By name, the SHA-256 of the source, or `None` where Python cannot find it.
  """
  own = layers or {}
  return {
      name: _source_digest(own[name]) for name in sorted(set(names) & set(own))
  }


def own_layers(recorded, layers: Layers, workdir) -> Layers:
  """Returns those of `layers` that a run had; warns if one has changed.

  Args:
    recorded: What `describe_layers` returned for the run.
    layers: Layers by name.
    workdir: The directory of the run, for messages.

  Raises:
    UserValueError: If one is missing.
  """
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


def _abstract_model(task):
  functional = task.functional
  return functional.merge(functional.params, functional.batch_stats)


def _check_timed(task, dataset):
  """Raises `UserValueError` unless the model takes the lengths of steps."""
  if getattr(_abstract_model(task), 'takes_dt', False):
    return
  raise errors.UserValueError(
      f'The steps of {dataset.name} have lengths (dt), which model.layer '
      f'{task.model.layer} does not take'
      f'{" with model.bidirectional=True" * task.model.bidirectional}. Layers '
      f'that do: {", ".join(building.timed_layers())}.'
  )


def _check_causal(task, dataset):
  """Raises `UserValueError` if an output depends on later inputs."""
  if getattr(_abstract_model(task), 'causal', True):
    return
  if task.model.bidirectional:
    wrong = 'model.bidirectional must be False, got True'
    remedy = 'Set model.bidirectional=False'
  else:
    wrong = (
        f'model.layer must be causal, got {task.model.layer} with '
        f'model.layer_options={dict(task.model.layer_options)}'
    )
    remedy = 'Choose another layer or other options'
  raise errors.UserValueError(
      f'{wrong}: the targets of {dataset.name} are inputs of later steps '
      f'(forecast=True), which this model sees. {remedy}. If the targets are '
      'labels of steps, make the data set with forecast=False.'
  )


def _source_digest(layer) -> str | None:
  try:
    source = inspect.getsource(layer)
  except (OSError, TypeError):  # Typed in at a prompt, or no function or class.
    return None
  return hashlib.sha256(source.encode()).hexdigest()
