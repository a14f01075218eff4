"""The mean of each metric over a split, and the predictions for it."""

from collections.abc import Mapping

import jax
import numpy as np
from rnnzoo import errors
from rnnzoo.training import memory
from rnnzoo.training import sharding
from rnnzoo.training import step as step_lib


def evaluate_model(
    task, dataset, model, split: str, mesh
) -> dict[str, float]:
  """Evaluates a model on a split.

  Args:
    task: The task of the model, see `rnnzoo.tasks.Task`.
    dataset: The data set.
    model: The model.
    split: A name in `dataset.eval_splits`.
    mesh: The devices to share the batches among.

  Returns:
    The mean of each metric over the targets that count, such as `loss`.
  """
  params, batch_stats = _everywhere(task, model, mesh)
  task = task.reading(dataset)
  with jax.set_mesh(mesh):
    return mean_metrics(
        make_eval_step(task), mesh, params, batch_stats,
        dataset.eval_batches(split),
    )


def predict(task, dataset, model, split: str, mesh) -> dict[str, np.ndarray]:
  """Predicts every target of a split, in the order of the data set.

  Args:
    task: The task of the model.
    dataset: The data set.
    model: The model.
    split: A name in `dataset.eval_splits`.
    mesh: The devices to share the batches among.

  Returns:
    What `task.predict` gives, `target`, and `length`, the number of steps of
    each sequence. Missing numbers of a forecast's target are NaN. If sequences
    differ in length, targets of every step are object arrays of arrays.

  Raises:
    UserError: If there are several processes, so that none has all rows.
  """
  if jax.process_count() > 1:
    raise errors.UserError(
        'Predictions can be written by one process only: start one without '
        '--multihost.'
    )
  params, batch_stats = _everywhere(task, model, mesh)
  task = task.reading(dataset)

  @jax.jit
  def step(params, batch_stats, batch):
    return task.predict(task.functional.merge(params, batch_stats), batch)

  rows = []
  # The numbers of windows of a forecast, whose targets may be missing.
  examples = dataset.source.get('examples') if dataset.horizon else None
  with jax.set_mesh(mesh):
    for batch in dataset.eval_batches(split):
      found = memory.fetch(
          step(params, batch_stats, sharding.global_batch(mesh, batch))
      )
      rows += _rows(found, batch, every=bool(examples))
  if examples:  # Without the rows that only fill up the last batch.
    rows = rows[: examples[split]]
  if split in dataset.eval_order:
    rows = [rows[i] for i in np.argsort(dataset.eval_order[split])]
  names = rows[0] if rows else ()
  return {name: _array([row[name] for row in rows]) for name in names}


def make_eval_step(task):
  """Returns the compiled `(params, batch_stats, batch) -> sums` of a task."""

  def first_carry(params, batch_stats, rows):
    model = task.functional.merge(params, batch_stats)
    if not getattr(model, 'causal', True):
      return None
    return model.initialize_carry(rows)

  return jax.jit(
      step_lib.make_eval_step(task.loss_fn(train=False), first_carry)
  )


def mean_metrics(
    eval_step, mesh, params, batch_stats, batches, check=lambda: None
) -> dict[str, float]:
  """Returns the mean of each metric over batches.

  Args:
    eval_step: See `make_eval_step`.
    mesh: The mesh to spread batches over.
    params: Parameters.
    batch_stats: Statistics of batch norms.
    batches: This process's part of each batch.
    check: Called before each batch; it may raise an error to stop.
  """
  totals = {}
  for batch in batches:
    check()
    new = eval_step(params, batch_stats, sharding.global_batch(mesh, batch))
    # The device is one batch behind and no more, so that `check` is timely.
    jax.block_until_ready(totals)
    totals = {k: totals.get(k, 0.0) + v for k, v in new.items()}
  totals = memory.fetch(totals)
  weight = float(totals.pop('weight'))
  return {name: float(total) / weight for name, total in totals.items()}


def parameters_name(config: Mapping) -> str:
  """Returns the part of a state that a run evaluates: `params` or `ema`."""
  return 'ema' if config.get('ema_decay', 0) > 0 else 'params'


def _everywhere(task, model, mesh):
  """Returns the parameters and statistics of a model on all devices."""
  variables = task.functional.variables(model)
  if jax.process_count() > 1:  # Each process has them whole on its own device.
    variables = memory.fetch(variables)
  return jax.device_put(variables, jax.NamedSharding(mesh, jax.P()))


def _rows(found, batch, every=False):
  """Returns a dictionary for each sequence that counts, or for every one."""
  inputs, targets = batch['inputs'], batch['targets']
  mask, exists = batch.get('mask'), batch.get('input_mask')
  rows = []
  for i, target in enumerate(targets):
    chosen = None if mask is None else mask[i]
    if chosen is not None and not (every or np.any(chosen)):
      continue  # The row only fills up the last batch.
    length = inputs.shape[1] if exists is None else int(exists[i].sum())
    if chosen is not None and np.ndim(chosen) > 1:
      # Each number of the target is one of its own.
      target = np.where(chosen, target, np.nan)
    row = dict({name: u[i] for name, u in found.items()}, target=target)
    # A target at every step; some count.
    if chosen is not None and np.ndim(chosen) == 1:
      row = {
          name: u[chosen] if np.shape(u)[:1] == chosen.shape else u
          for name, u in row.items()
      }
    rows.append(dict(row, length=length))
  return rows


def _array(values):
  """Stacks values; those of different shapes become an object array."""
  if len({np.shape(u) for u in values}) <= 1:
    return np.stack([np.asarray(u) for u in values])
  array = np.empty(len(values), object)
  array[:] = values
  return array
