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


def summarize(run, workdir):
  """Evaluates the best checkpoint on the test split; returns the summary."""
  task, config = run.task, run.config
  name = evaluation.parameters_name(config)
  params, batch_stats = task.functional.params, task.functional.batch_stats
  everywhere = jax.NamedSharding(run.mesh, jax.P())
  # As in training: there may be no device with room for all of them.
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
  params = best[name]
  sums = lambda split: run.sums(
      params, best['batch_stats'], split, config.total_steps
  )

  def lowest(split, losses):
    """Of all evaluations; where their records are lost, of the best step."""
    if multihost.agreed(bool(losses)):
      return min(losses.values())
    return sums(split)['loss']

  test = sums('test')
  rows = metrics_lib.read_metrics(workdir)
  # Losses on other data do not compare.
  rows_since = [r for r in rows if r['step'] > run.history.data_since]
  losses = run.saver.metrics | dict(records.numbers(rows_since, 'eval_loss'))
  first, *others = config.eval_splits
  extra = {
      f'best_eval_{split}_loss': lowest(
          split, dict(records.numbers(rows_since, f'eval_{split}_loss'))
      )
      for split in others
  }
  return {
      'best_step': step,
      # The lowest may be of a step whose save failed.
      'best_eval_loss': (
          losses[step] if step in losses else lowest(first, losses)
      ),
      **extra,
      'test_loss': test['loss'],
      'test_bits_per_token': test['loss'] / np.log(2),
      'test_accuracy': test['accuracy'],
      'total_steps': config.total_steps,
      'parameters': state_lib.count_parameters(task.functional.params),
      'skipped_steps': run.history.skipped,
      'rollbacks': len(run.history.rollbacks),
      'seconds': round(busy_seconds(rows), 1),
      'device': host.device_description(),
      'jax': jax.__version__,
      'seed': config.seed,
      'model.layer': config.model.layer,
      'data.name': config.data.name,
  }


def busy_seconds(rows):
  """Returns the time between metric lines, without the pauses between runs."""
  gaps = np.diff([row['wall_time'] for row in rows])
  gaps = gaps[gaps > 0]  # Between runs, the clock may have been set back.
  usual = 20 * np.median(gaps) if len(gaps) else 0
  return float(gaps[gaps <= max(usual, 60)].sum())
