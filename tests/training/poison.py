"""Training tasks with batches whose loss or gradient is not finite."""

import os
import signal

from experiments.cli import watching
import jax
import jax.numpy as jnp
import numpy as np

# What a batch can be made to do.
KINDS = ('loss', 'gradient', 'row', 'carry')


def poisoned(
    task, dataset, bad, stop_at=None, kill_at=None, stop_evaluating=None
):
  """The same task and data, with batches that are bad by number.

  Args:
    task: The task.
    dataset: The data.
    bad: Maps numbers of batches to what is not finite there, of `KINDS`.
    stop_at: Ctrl-C comes together with the batch of this number.
    kill_at: Everything ends with the batch of this number.
    stop_evaluating: Ctrl-C comes in this evaluation, from 1.

  Returns:
    `(task, dataset, seen)`; `seen` lists the batches that were asked for.
  """
  seen = []

  def train_iterator(start):
    for number, batch in enumerate(dataset.train_iterator(start), start):
      if number == kill_at:
        raise KeyboardInterrupt
      seen.append(number)
      if number == stop_at:
        os.kill(os.getpid(), signal.SIGINT)
      rows = len(batch['inputs'])
      poison = {kind: np.zeros(rows, np.float32) for kind in KINDS}
      if number in bad:
        where = -1 if bad[number] == 'row' else slice(None)
        poison[bad[number]][where] = np.nan
      poison['gradient'] = np.isnan(poison['gradient']).astype(np.float32)
      yield batch | {f'poison_{kind}': rows for kind, rows in poison.items()}

  def loss(*, train):
    plain = task.loss_fn(train=train)

    def loss_fn(params, batch_stats, batch, carry, key):
      total, (sums, batch_stats, carry) = plain(
          params, batch_stats, batch, carry, key
      )
      if train:
        whole = 1 - batch['poison_gradient'][0]
        # The slope of a root at 0, times 0; the value is 0 always.
        total += jnp.sqrt(whole + 0 * params['embed']['embedding'][0, 0])
        total -= whole
        # That of a row is in the gradient, too.
        extra = batch['poison_loss'][0]
        extra += batch['poison_row'].sum() * params['embed']['embedding'][0, 0]
        total += extra
        sums |= dict(loss=sums['loss'] + extra)
        carry = jax.tree.map(
            lambda u: u + jnp.expand_dims(
                batch['poison_carry'], (0, *range(2, u.ndim))
            ),
            carry,
        )
      return total, (sums, batch_stats, carry)

    return loss_fn

  evaluations = []

  def eval_batches(split):
    evaluations.append(split)
    for batch in dataset.eval_batches(split):
      if len(evaluations) == stop_evaluating:
        os.kill(os.getpid(), signal.SIGINT)
      yield batch

  new_dataset = watching.replaced(
      dataset, train_iterator=train_iterator, eval_batches=eval_batches
  )
  return watching.replaced(task, loss_fn=loss), new_dataset, seen
