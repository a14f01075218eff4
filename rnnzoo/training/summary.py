"""What a finished run says about itself: `summary.json`."""

import jax
import numpy as np
from rnnzoo.training import evaluation
from rnnzoo.training import host
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib


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
  placed = lambda u, s: jax.ShapeDtypeStruct(u.shape, u.dtype, sharding=s)
  abstract = {
      name: jax.tree.map(placed, params, shardings),
      'batch_stats': jax.tree.map(
          lambda u: placed(u, everywhere), batch_stats
      ),
  }
  step, best, _ = run.saver.restore(abstract, best=True, partial=True)
  params = best[name]
  test = run.sums(
      params, best['batch_stats'], 'test', config.total_steps
  )
  rows = metrics_lib.read_metrics(workdir)
  evals = [r for r in rows if r.get('eval_loss') is not None]
  # Losses on other data do not compare.
  evals = [r for r in evals if r['step'] > run.history.data_since] or evals
  of_best = next((r['eval_loss'] for r in evals if r['step'] == step), None)
  seconds = _busy_seconds(rows)
  extra = {
      f'best_eval_{split}_loss': min(
          r[f'eval_{split}_loss'] for r in evals if f'eval_{split}_loss' in r
      )
      for split in config.eval_splits[1:]
  }
  return {
      'best_step': step,
      # The lowest may be of a step whose save failed.
      'best_eval_loss': of_best or min(r['eval_loss'] for r in evals),
      **extra,
      'test_loss': test['loss'],
      'test_bits_per_token': test['loss'] / np.log(2),
      'test_accuracy': test['accuracy'],
      'total_steps': config.total_steps,
      'parameters': state_lib.count_parameters(task.functional.params),
      'skipped_steps': run.history.skipped,
      'rollbacks': len(run.history.rollbacks),
      'seconds': round(seconds, 1),
      'device': host.device_description(),
      'jax': jax.__version__,
      'seed': config.seed,
      'model.layer': config.model.layer,
      'data.name': config.data.name,
  }


def _busy_seconds(rows):
  """Time between metric lines, without the pauses between runs."""
  times = [r['wall_time'] for r in rows]
  gaps = np.diff(times)
  usual = 20 * np.median(gaps) if len(gaps) else 0
  return float(gaps[gaps <= max(usual, 60)].sum()) if len(gaps) else 0.0
