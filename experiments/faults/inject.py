"""Trains with something wrong put into the program.

  python -m experiments.faults.inject loss=7 WORDS

is `python -m experiments.train WORDS` in which the batch of step 7 gives a loss
that is not a number. `gradient=7` changes only the gradient, `row=7` one row of
the batch, `slow_evaluation=9` makes each evaluation take that many seconds,
`slow_plot=9` does so to the drawing of the curve, and `batches=FILE` appends
each step and the digest of its batch to a file. Nothing of this is in the
program itself: it is replaced from outside.
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
  """Makes the result of one step not finite."""
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
  """Returns `total`, with `poison` added to what its gradient is taken from."""
  del poison
  return total


_poison_gradient.defvjp(
    lambda total, poison: (total, poison),
    lambda poison, g: (g + poison, poison),
)


def slow_evaluation(seconds):
  """Lets each evaluation take this long, a batch a second.

  Between the batches that there are come such as count for nothing.
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
  """Lets the curve take this long, before it is drawn."""
  plot_curves = metrics.plot_curves

  def slow_curves(workdir):
    time.sleep(seconds)
    return plot_curves(workdir)

  metrics.plot_curves = slow_curves


def record_batches(path):
  """Writes down what each step trains on."""
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
