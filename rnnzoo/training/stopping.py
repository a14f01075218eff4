"""When a run ends before `total_steps`: `stop_at` and `patience`.

Both look at what `metrics.jsonl` says, so a resumed run ends at the same step.
"""

import jax
from rnnzoo import errors
from rnnzoo.training import evaluation
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import records
from rnnzoo.training import sharding
from rnnzoo.training.processes import multihost


def prefixes(config) -> dict[str, str]:
  """Returns what the names of metrics start with, by split.

  >>> import types
  >>> prefixes(types.SimpleNamespace(eval_splits=('validation', 'long')))
  {'validation': 'eval_', 'long': 'eval_long_'}
  """
  first, *others = config.eval_splits
  return {first: 'eval_'} | {name: f'eval_{name}_' for name in others}


def reason(run, history, step: int) -> str:
  """Returns why a run ends after a step that was evaluated; '' if it goes on.

  Args:
    run: A `loop.Run`.
    history: Its `recovery.History`.
    step: The step.
  """
  config = run.config
  if not (config.stop_at or config.patience):
    return ''
  rows = metrics_lib.read_metrics(run.workdir)
  if config.stop_at and multihost.agreed(_has_reached(run, rows, step)):
    return 'stop_at is reached'
  # Results on other data do not compare.
  rows = [row for row in rows if row['step'] > history.data_since]
  if config.patience and multihost.agreed(_has_stalled(run, rows, step)):
    return (
        f'{config.patience} evaluations in a row were no better than the best '
        'before (patience)'
    )
  return ''


def _has_reached(run, rows, step) -> bool:
  """Whether the metrics of a step are as good as `config.stop_at` asks."""
  rows = [row for row in rows if row['step'] == step]
  asked = [
      (metric, f'{prefix}{metric}', value)
      for metric, value in run.config.stop_at.items()
      for prefix in prefixes(run.config).values()
  ]
  return all(
      any(
          run.task.is_as_good(metric, found, value)
          for _, found in records.numbers(rows, name)
      )
      for metric, name, value in asked
  )


def _has_stalled(run, rows, step) -> bool:
  """Whether the last `config.patience` evaluations have brought nothing."""
  task = run.task
  found = dict(records.numbers(rows, f'eval_{task.best}'))
  if step not in found:
    return False
  found = {n: value for n, value in found.items() if n <= step}
  choose = max if task.best_mode == 'max' else min
  # Of equal ones the first is the best, as for checkpoints.
  best = choose(sorted(found), key=lambda n: found[n])
  return sum(n > best for n in found) >= run.config.patience


def check_metrics(run, names) -> None:
  """Raises `UserValueError` if the task has no metric of one of the names."""
  functional = run.task.functional
  batch = run.dataset.eval_batches(run.config.eval_splits[0])[0]
  known = jax.eval_shape(
      evaluation.make_eval_step(run.task),
      functional.params, functional.batch_stats,
      sharding.global_batch(run.mesh, batch),
  )
  known = sorted(known.keys() - {'weight'})
  for name in names:
    if name not in known:
      raise errors.UserValueError(
          f'stop_at: {run.task.name} has no metric {name!r}, only '
          f'{", ".join(known)}.{errors.suggest(name, known)}'
      )
