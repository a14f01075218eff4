"""The training and the evaluation step, pure functions of dictionaries."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rnnzoo.training import state as state_lib

# loss_fn(params, batch_stats, batch, carry, key) ->
#   (sum of losses, (sums, batch_stats, carry))
# where `sums` holds at least `loss` and `weight`; see `tasks.Task.forward`.
LossFn = Callable[..., tuple[jax.Array, Any]]
# The longest segment of time that an evaluation step reads at once.
SEGMENT_STEPS = 2**17


def initial_state(functional, tx, seed, *, ema=False, carry=None):
  """Returns the state before the first step; to be jitted with its shardings.

  Args:
    functional: The model, as `training.state.Functional`.
    tx: The optimiser.
    seed: Of the parameters.
    ema: Whether to keep a moving average of the parameters.
    carry: For stateful training, a function that maps the model to its first
      recurrent state; `None` where every batch starts anew.

  Returns:
    Nested dictionaries: `params`, `batch_stats`, `opt_state`, `step`, and `ema`
    and `carry` where asked for. All but `carry` is float32 at least.
  """
  params, batch_stats = state_lib.at_least_float32(functional.initialize(seed))
  state = dict(
      params=params,
      batch_stats=batch_stats,
      opt_state=tx.init(params),
      step=jnp.zeros((), jnp.int32),
  )
  if ema:
    state['ema'] = jax.tree.map(jnp.copy, params)
  if carry is not None:
    state['carry'] = carry(functional.merge(params, batch_stats))
  return state


def make_train_step(
    loss_fn: LossFn,
    tx,
    *,
    seed: int,
    accumulate_steps=1,
    ema_decay=0.0,
    skip_bad=False,
):
  """Builds `train_step(state, batch) -> (state, metrics)`.

  Args:
    loss_fn: See `LossFn`.
    tx: The optimiser, an `optimizers.Optimizer`. What its attribute `frozen`
      marks gets no gradient, so that a step is neither clipped nor skipped for
      it.
    seed: With the step's number, the only source of randomness.
    accumulate_steps: Number of parts that a batch is run in, one after another;
      the gradient is that of the whole batch.
    ema_decay: Of the moving average of the parameters, if the state has one.
    skip_bad: Whether a step counts and does nothing else if its loss or its
      gradient is not finite, or there is NaN in what it would carry on.

  Returns:
    A function to be jitted. Its metrics are scalars: the mean of each sum of
    the loss function over the targets that count, `grad_norm`, and with
    `skip_bad` the bool `skipped`.
  """
  def train_step(state, batch):
    step = state['step'] + 1
    key = jax.random.fold_in(jax.random.key(seed, impl='rbg'), step)
    params, carry = state['params'], state.get('carry')
    frozen = tx.frozen
    # Where a parameter is frozen `trained` has a node without leaves.
    trained = jax.tree.map(
        lambda held, p: optax.MaskedNode() if held else p, frozen, params
    )

    def loss_of_trained(trained, *rest):
      whole = jax.tree.map(
          lambda held, p, t: p if held else t, frozen, params, trained
      )
      return loss_fn(whole, *rest)

    grad_fn = jax.value_and_grad(loss_of_trained, has_aux=True)

    def part(batch_stats, batch, carry, key):
      (_, (sums, batch_stats, carry)), grads = grad_fn(
          trained, batch_stats, batch, carry, key
      )
      return batch_stats, carry, sums, grads

    if accumulate_steps == 1:
      batch_stats, carry, sums, grads = part(
          state['batch_stats'], batch, carry, key
      )
    else:
      batch_stats, carry, sums, grads = _accumulate(
          part, accumulate_steps, state['batch_stats'], batch, carry, key
      )
    weight = jnp.maximum(sums['weight'], 1)
    grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
    metrics = {
        name: total / weight for name, total in sums.items() if name != 'weight'
    }
    metrics['grad_norm'] = optax.tree.norm(grads)
    grads = jax.tree.map(
        lambda held, p, g: jnp.zeros_like(p) if held else g,
        frozen, params, grads,
    )
    updates, opt_state = tx.update(grads, state['opt_state'], params)
    params = optax.apply_updates(params, updates)
    new_state = dict(
        state,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        step=step,
    )
    if 'ema' in state:
      average = optax.incremental_update(
          params, state['ema'], 1 - ema_decay
      )
      new_state['ema'] = jax.tree.map(
          lambda held, p, e: p if held else e, frozen, params, average
      )
    if 'carry' in state:
      new_state['carry'] = carry
    if skip_bad:
      good = _is_good(metrics, batch_stats, carry)
      metrics['skipped'] = ~good
      # A selection, which XLA makes a part of the update, and not `lax.cond`,
      # for which a GPU would have to ask the host.
      new_state = jax.tree.map(
          lambda new, old: jnp.where(good, new, old),
          new_state, dict(state, step=step),
      )
    return new_state, metrics

  return train_step


def several_steps(train_step):
  """Runs `train_step` over batches stacked along a new first axis."""

  def steps(state, batches):
    return jax.lax.scan(train_step, state, batches)

  return steps


def make_eval_step(loss_fn: LossFn, first_carry=None):
  """Builds `eval_step(params, batch_stats, batch) -> sums`, without dropout.

  Rows of more than `SEGMENT_STEPS` steps are read segment by segment, where
  every step has a target: the memory is that of one segment.

  Args:
    loss_fn: See `LossFn`.
    first_carry: `(params, batch_stats, rows) -> carry`, the recurrent state
      before the first segment, or `None` if the model has to see whole rows.
  """

  def eval_step(params, batch_stats, batch):
    carry, count = None, 1
    if first_carry is not None and (count := _segments(batch)) > 1:
      carry = first_carry(params, batch_stats, len(batch['inputs']))
    if carry is None:
      _, (sums, _, _) = loss_fn(params, batch_stats, batch, None, None)
      return sums

    def segment(carry, part):
      _, (sums, _, carry) = loss_fn(params, batch_stats, part, carry, None)
      return carry, sums

    parts = {
        name: jnp.moveaxis(u.reshape(len(u), count, -1, *u.shape[2:]), 1, 0)
        for name, u in batch.items()
    }
    return jax.tree.map(lambda u: u.sum(0), jax.lax.scan(
        segment, carry, parts
    )[1])

  return eval_step


def _segments(batch) -> int:
  """Returns into how many equal segments to cut the time of a batch."""
  steps = batch['inputs'].shape[1]
  least = -(-steps // SEGMENT_STEPS)
  if any(u.shape[:2] != batch['inputs'].shape[:2] for u in batch.values()):
    return 1  # There is one target for a row.
  # If no count near the least one divides the steps, the segments are tiny.
  counts = (n for n in range(least, 16 * least) if steps % n == 0)
  return next(counts, 1)


def _is_good(metrics, *kept):
  """Whether loss and gradient are finite, and nothing of `kept` is NaN."""
  good = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
  for leaf in jax.tree.leaves(kept):
    good &= ~jnp.isnan(leaf).any()
  return good


def _accumulate(part, count, batch_stats, batch, carry, key):
  """Sums gradients over `count` interleaved parts of the batch."""
  # Row r goes to part r % count: every part spreads over all devices.
  split = lambda u, axis: jnp.moveaxis(
      u.reshape(
          *u.shape[:axis], u.shape[axis] // count, count, *u.shape[axis + 1 :]
      ),
      axis + 1, 0,
  )
  join = lambda u: jnp.moveaxis(u, 0, 2).reshape(
      u.shape[1], u.shape[0] * u.shape[2], *u.shape[3:]
  )
  batches = jax.tree.map(lambda u: split(u, 0), batch)
  carries = jax.tree.map(lambda u: split(u, 1), carry)
  keys = jax.random.split(key, count)
  first = lambda tree: jax.tree.map(lambda u: u[0], tree)
  shapes = jax.eval_shape(
      part, batch_stats, first(batches), first(carries), keys[0]
  )
  zeros = state_lib.at_least_float32(
      jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[2:])
  )

  def body(state, inputs):
    batch_stats, totals = state
    batch_stats, carry, *new = part(batch_stats, *inputs)
    totals = jax.tree.map(jnp.add, totals, tuple(new))
    return (batch_stats, totals), carry

  (batch_stats, (sums, grads)), carries = jax.lax.scan(
      body, (batch_stats, zeros), (batches, carries, keys)
  )
  return batch_stats, jax.tree.map(join, carries), sums, grads
