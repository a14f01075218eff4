"""Trains with an error that is injected into the program.

  python -m experiments.faults.inject loss=7 WORDS

runs `python -m experiments.train WORDS`, and the loss of step 7 is not a
number. `gradient=7` changes only the gradient, `row=7` one row of the batch.
`slow_evaluation=9` makes each evaluation take 9 seconds, `slow_plot=9` the
drawing of the curve. `batches=FILE` appends each step and the digest of its
batch to a file. The program itself has none of this: functions are replaced
before it starts.
"""

import hashlib
import runpy
import sys
import time

import jax
import numpy as np
from rnnzoo.data import pipeline
from rnnzoo.tasks import base
from rnnzoo.training import metrics


def poison(kind, bad_step):
  """Makes the loss or the gradient of one step NaN."""
  train_iterator = pipeline.Dataset.train_iterator
  loss_of = base.Task.loss_fn

  def poisoned_iterator(self, start_step=1):
    batches = train_iterator(self, start_step)
    try:
      for step, batch in enumerate(batches, start_step):
        rows = np.zeros(len(batch['inputs']), np.float32)
        if step == bad_step:
          rows[-1 if kind == 'row' else slice(None)] = np.nan
        yield batch | dict(poison=rows)
    finally:
      batches.close()

  def poisoned_loss(self, *, train):
    loss_fn = loss_of(self, train=train)

    def loss(params, batch_stats, batch, carry, key):
      batch = dict(batch)
      rows = batch.pop('poison', np.zeros(1, np.float32))
      total, (sums, *rest) = loss_fn(params, batch_stats, batch, carry, key)
      if kind == 'gradient':
        return _poison_gradient(total, rows.sum()), (sums, *rest)
      scale = 1 + rows.sum()
      return total * scale, (dict(sums, loss=sums['loss'] * scale), *rest)

    return loss

  pipeline.Dataset.train_iterator = poisoned_iterator
  base.Task.loss_fn = poisoned_loss


@jax.custom_vjp
def _poison_gradient(total, poison):
  """Returns `total` and adds `poison` to its gradient."""
  del poison
  return total


_poison_gradient.defvjp(
    lambda total, poison: (total, poison),
    lambda poison, g: (g + poison, poison),
)


def slow_evaluation(seconds):
  """Makes each evaluation take `seconds` seconds.

  Each batch is repeated, one copy per second, with a mask that excludes it.
  """
  batches_of = pipeline.Dataset.eval_batches

  def slow_batches(self, split):
    batches = batches_of(self, split)
    for batch in batches:
      yield batch
      for _ in range(round(seconds / len(batches))):
        time.sleep(1)
        yield batch | dict(mask=np.zeros_like(batch['mask']))

  pipeline.Dataset.eval_batches = slow_batches


def slow_plot(seconds):
  """Makes the drawing of the curve take `seconds` seconds."""
  plot_curves = metrics.plot_curves

  def slow_curves(workdir, **options):
    time.sleep(seconds)
    return plot_curves(workdir, **options)

  metrics.plot_curves = slow_curves


def record_batches(path):
  """Writes the digest of the batch of each step to a file."""
  train_iterator = pipeline.Dataset.train_iterator

  def recorded_iterator(self, start_step=1):
    batches = train_iterator(self, start_step)
    try:
      for step, batch in enumerate(batches, start_step):
        data = b''.join(batch[name].tobytes() for name in sorted(batch))
        with open(path, 'a', encoding='utf-8') as file:
          file.write(f'{step} {hashlib.sha256(data).hexdigest()}\n')
        yield batch
    finally:
      batches.close()

  pipeline.Dataset.train_iterator = recorded_iterator


def main():
  what, _, value = sys.argv.pop(1).partition('=')
  if what == 'batches':
    record_batches(value)
  elif what == 'slow_evaluation':
    slow_evaluation(float(value))
  elif what == 'slow_plot':
    slow_plot(float(value))
  else:
    poison(what, int(value))
  runpy.run_module('experiments.train', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
