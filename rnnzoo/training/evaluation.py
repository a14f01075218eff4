"""The mean loss and accuracy over a split."""

import jax
from rnnzoo.training import memory
from rnnzoo.training import sharding
from rnnzoo.training import step as step_lib


def evaluate_model(task, model, split: str, mesh) -> dict[str, float]:
  """Evaluates a model on a split.

  Args:
    task: A task whose models look like this one.
    model: The model.
    split: A name that `task.eval_batches` takes.
    mesh: The devices to share the batches among.

  Returns:
    Means over the positions that count: `loss` in nats, and `accuracy`.
  """
  variables = task.functional.variables(model)
  if jax.process_count() > 1:  # Each has them whole, and on its own device.
    variables = memory.fetch(variables)
  params, batch_stats = jax.device_put(
      variables, jax.NamedSharding(mesh, jax.P())
  )
  with jax.set_mesh(mesh):
    return mean_metrics(
        make_eval_step(task), mesh, params, batch_stats,
        task.eval_batches(split),
    )


def make_eval_step(task):
  """Returns the compiled `(params, batch_stats, batch) -> sums` of a task."""
  return jax.jit(
      step_lib.make_eval_step(task.loss(task.functional, train=False))
  )


def mean_metrics(
    eval_step, mesh, params, batch_stats, batches, check=lambda: None
):
  """Returns the mean loss and accuracy over batches.

  Args:
    eval_step: See `make_eval_step`.
    mesh: The mesh to spread batches over.
    params: Parameters.
    batch_stats: Statistics of batch norms.
    batches: This process's part of each batch.
    check: Called before each batch; may raise to end all of it.
  """
  totals = {}
  for batch in batches:
    check()
    new = eval_step(params, batch_stats, sharding.global_batch(mesh, batch))
    # One batch ahead of the device and no more: `check` is of now.
    jax.block_until_ready(totals)
    totals = {k: totals.get(k, 0.0) + v for k, v in new.items()}
  totals = memory.fetch(totals)
  weight = float(totals['weight'])
  means = dict(loss=float(totals['loss']) / weight)
  if 'correct' in totals:
    means['accuracy'] = float(totals['correct']) / weight
  return means


def parameters_name(config) -> str:
  """Returns the part of a state that a run evaluates: `params` or `ema`."""
  return 'ema' if config.get('ema_decay', 0) > 0 else 'params'
