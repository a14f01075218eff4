"""Trains a model for one row of a benchmark, in a workdir that it removes."""

import tempfile
import time

from rnnzoo import training
from rnnzoo.training import metrics


def train(
    task, dataset, *, learning_rate, warmup_steps, eval_every, **settings
):
  """Trains with Adam at a constant rate; returns the summary and the history.

  Args:
    task: A `rnnzoo.tasks.Task`.
    dataset: A `rnnzoo.data.Dataset`.
    learning_rate: The rate after the warm-up.
    warmup_steps: Steps of the warm-up.
    eval_every: The number of steps between evaluations.
    **settings: More of `rnnzoo.training.config.defaults`.

  Returns:
    `(summary, history)`: what `training.train` returned, and for each
    evaluation a dictionary of its metrics, with `step`, `train_loss` and
    `seconds` since the start, compilation included.
  """
  optimizer = dict(
      name='adam', schedule='constant', weight_decay=0.0, options={},
      learning_rate=learning_rate, end_learning_rate=learning_rate,
      warmup_steps=warmup_steps,
  )
  start = time.time()
  with tempfile.TemporaryDirectory() as workdir:
    summary = training.train(
        task, dataset, workdir, optimizer=optimizer, eval_every=eval_every,
        log_every=eval_every, tensorboard=False, keep=1, **settings,
    )
    rows = metrics.read_metrics(workdir)
  losses = {r['step']: r['train_loss'] for r in rows if 'train_loss' in r}
  return summary, [
      row | dict(
          train_loss=losses[row['step']], seconds=row['wall_time'] - start
      )
      for row in rows if 'eval_loss' in row
  ]
