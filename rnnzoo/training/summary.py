"""What a finished run says about itself: `summary.json`."""

import jax
import numpy as np
from rnnzoo.training import evaluation
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import records
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from rnnzoo.training.processes import host
from rnnzoo.training.processes import multihost


def summarize(run, history):
  """Evaluates the best checkpoint on the test splits; returns the summary.

  These are all splits whose names start with `test`: the accuracy on `test` is
  `test_accuracy`, that on `test_256` is `test_256_accuracy`.

  Args:
    run: A `loop.Run` that has done all of its steps.
    history: Its `recovery.History`.
  """
  task, dataset, config = run.task, run.dataset, run.config
  step, params, batch_stats = _best(run)
  means = lambda split: run.means(
      params, batch_stats, split, config.total_steps
  )
  rows = metrics_lib.read_metrics(run.workdir)
  # Results on other data do not compare.
  rows = [row for row in rows if row['step'] > history.data_since]
  first, *others = config.eval_splits
  best = dict(records.numbers(rows, f'eval_{task.best}'))
  best = run.saver.metrics | best
  choose = min if task.best_mode == 'min' else max

  def best_of(split, values, name):
    """The best of all evaluations; measured again if none is recorded."""
    if multihost.agreed(bool(values)):
      return choose(values.values())
    return means(split)[name]

  result = {
      'best_step': step,
      # The best one may be of a step whose save failed.
      f'best_eval_{task.best}': (
          best[step] if step in best else best_of(first, best, task.best)
      ),
  }
  if task.best != 'loss':
    losses = dict(records.numbers(rows, 'eval_loss'))
    known = multihost.agreed(step in losses)
    result['best_eval_loss'] = losses[step] if known else means(first)['loss']
  for split in others:
    name = f'eval_{split}_{task.best}'
    result[f'best_{name}'] = best_of(
        split, dict(records.numbers(rows, name)), task.best
    )
  for split in dataset.eval_splits:
    if split.startswith('test'):
      found = means(split)
      found |= task.derived(found, dataset)
      result |= {f'{split}_{name}': value for name, value in found.items()}
  return {
      **result,
      'total_steps': config.total_steps,
      'parameters': state_lib.count_parameters(task.functional.params),
      'skipped_steps': history.skipped,
      'rollbacks': len(history.rollbacks),
      'seconds': round(
          busy_seconds(metrics_lib.read_metrics(run.workdir)), 1
      ),
      'device': host.device_description(),
      'jax': jax.__version__,
      'seed': config.seed,
      'task': task.name,
      'model.layer': task.model.layer,
      'data.name': dataset.name,
      **({'fixture': True} if dataset.fixture else {}),
  }


def _best(run):
  """Restores the best checkpoint: its step, parameters and statistics."""
  config, task = run.config, run.task
  name = evaluation.parameters_name(config)
  params, batch_stats = task.functional.params, task.functional.batch_stats
  everywhere = jax.NamedSharding(run.mesh, jax.P())
  # As in training: one device may have no room for all parameters.
  shardings = sharding.parameter_shardings(
      run.mesh, params, task.functional.axes, tuple(config.whole_axes)
  )
  params = jax.eval_shape(state_lib.at_least_float32, params)
  placed = lambda u, s: jax.ShapeDtypeStruct(u.shape, u.dtype, sharding=s)
  abstract = {
      name: jax.tree.map(placed, params, shardings),
      'batch_stats': jax.tree.map(
          lambda u: placed(u, everywhere), batch_stats
      ),
  }
  step, best, _ = run.saver.restore(abstract, best=True, partial=True)
  return step, best[name], best['batch_stats']


def busy_seconds(rows):
  """Returns the time between metric lines, without the pauses between runs."""
  gaps = np.diff([row['wall_time'] for row in rows])
  gaps = gaps[gaps > 0]  # Between runs, the clock may have been set back.
  usual = 20 * np.median(gaps) if len(gaps) else 0
  return float(gaps[gaps <= max(usual, 60)].sum())
