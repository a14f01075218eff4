"""Tests of `rnnzoo.training.step`, on a model of one number a row."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
from rnnzoo.training import optimizers
from rnnzoo.training import state as state_lib
from rnnzoo.training import step as step_lib


class Functional:
  """Just enough of `training.state.Functional`."""

  def initialize(self, seed):
    params = dict(w=jnp.float32(1 + seed), b=jnp.float32(0.5))
    return params, dict(seen=jnp.float32(0))

  def merge(self, params, batch_stats):
    return params | batch_stats


def loss_fn(params, batch_stats, batch, carry, key):
  """Squared errors of `w * x + b + carry`; the carry adds up the inputs."""
  mask = batch['mask']
  start = 0.0 if carry is None else carry[0][:, None]
  errors = params['w'] * batch['x'] + params['b'] + start - batch['y']
  if key is not None:
    errors += 0.1 * jax.random.normal(key)
  loss = jnp.where(mask, errors**2, 0).sum()
  sums = dict(loss=loss, weight=mask.sum(dtype=jnp.float32))
  batch_stats = dict(seen=batch_stats['seen'] + mask.sum())
  if carry is not None:
    carry = (carry[0] + batch['x'].sum(1)[None])[0][None]
    carry = carry.reshape(1, -1)
  return loss, (sums, batch_stats, carry)


def without_key(params, batch_stats, batch, carry, key):
  del key
  return loss_fn(params, batch_stats, batch, carry, None)


def make_batch(seed, rows=6):
  rng = np.random.default_rng(seed)
  x, y = rng.standard_normal((2, rows, 4)).astype(np.float32)
  return dict(x=x, y=y, mask=rng.random((rows, 4)) < 0.7)


def make_state(tx, **options):
  return step_lib.initial_state(Functional(), tx, 3, **options)


def assert_close(a, b, rtol=1e-6):
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=rtol), a, b)


class StepTest(parameterized.TestCase):

  def test_the_mean_of_what_counts(self):
    tx = optimizers.Optimizer(*optax.sgd(0.1), frozen=False)
    step = jax.jit(step_lib.make_train_step(without_key, tx, seed=0))
    batch, state = make_batch(0), make_state(tx)

    def mean(params):
      errors = params['w'] * batch['x'] + params['b'] - batch['y']
      return (errors**2).mean(where=batch['mask'])

    loss, grads = jax.value_and_grad(mean)(state['params'])
    new, metrics = step(state, batch)
    assert_close(metrics['loss'], loss)
    assert_close(metrics['grad_norm'], optax.global_norm(grads))
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state['params'], grads)
    assert_close(new['params'], expected)
    self.assertEqual(new['step'], 1)
    self.assertEqual(new['batch_stats']['seen'], batch['mask'].sum())

  def test_nothing_that_counts(self):
    tx = optimizers.Optimizer(*optax.sgd(0.1), frozen=False)
    step = jax.jit(step_lib.make_train_step(without_key, tx, seed=0))
    batch = make_batch(0) | dict(mask=np.zeros((6, 4), bool))
    state = make_state(tx)
    new, metrics = step(state, batch)
    self.assertEqual(metrics['loss'], 0)
    assert_close(new['params'], state['params'])

  @parameterized.parameters(2, 3, 6)
  def test_accumulation_is_one_big_batch(self, count):
    # The parts hold different numbers of positions that count.
    tx = optimizers.Optimizer(*optax.adam(0.1), frozen=False)
    carry = lambda model: jnp.zeros((1, 6)) + model['w']
    results = []
    for accumulate in (1, count):
      step = jax.jit(
          step_lib.make_train_step(
              without_key, tx, seed=0, accumulate_steps=accumulate
          )
      )
      state = make_state(tx, carry=carry)
      for number in range(2):
        state, metrics = step(state, make_batch(number))
      results.append((state, metrics))
    assert_close(*results, rtol=1e-5)
    # Each row's carry is in its own row.
    sums = sum(make_batch(n)['x'].sum(1) for n in range(2))
    np.testing.assert_allclose(results[1][0]['carry'][0], 4 + sums, rtol=1e-5)

  def test_several_steps_are_as_many_single_ones(self):
    tx = optimizers.Optimizer(*optax.adam(0.1), frozen=False)
    step = step_lib.make_train_step(loss_fn, tx, seed=0)
    batches = [make_batch(n) for n in range(3)]
    state, losses = make_state(tx), []
    for batch in batches:
      state, metrics = jax.jit(step)(state, batch)
      losses.append(metrics['loss'])
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches)
    at_once = jax.jit(step_lib.several_steps(step))
    last, metrics = at_once(make_state(tx), stacked)
    assert_close(last, state)
    assert_close(metrics['loss'], np.array(losses))

  def test_randomness_is_of_seed_and_step(self):
    tx = optimizers.Optimizer(*optax.sgd(0.0), frozen=False)
    one, other = (
        jax.jit(step_lib.make_train_step(loss_fn, tx, seed=seed))
        for seed in (0, 1)
    )
    batch, state = make_batch(0), make_state(tx)
    after, metrics = one(state, batch)
    self.assertEqual(one(state, batch)[1]['loss'], metrics['loss'])
    self.assertNotEqual(one(after, batch)[1]['loss'], metrics['loss'])
    self.assertNotEqual(other(state, batch)[1]['loss'], metrics['loss'])

  @parameterized.parameters((1, 1), (2, 1), (1, 3))
  def test_skip_what_is_not_finite(self, accumulate, at_once):
    tx = optimizers.Optimizer(*optax.adam(0.1), frozen=False)
    carry = lambda model: jnp.zeros((1, 6)) + model['w']
    step = step_lib.make_train_step(
        loss_fn, tx, seed=0, accumulate_steps=accumulate, ema_decay=0.9,
        skip_bad=True,
    )
    state = make_state(tx, ema=True, carry=carry)
    batches = [make_batch(n) for n in range(3)]
    batches[1]['y'][4, 2] = np.nan
    batches[1]['mask'][4, 2] = True
    alone = jax.jit(step)
    after, found, skipped = [state], state, []
    for batch in batches:
      found, metrics = alone(found, batch)
      after.append(found)
      skipped.append(bool(metrics['skipped']))
    self.assertEqual(skipped, [False, True, False])
    self.assertTrue(np.isnan(alone(after[1], batches[1])[1]['loss']))
    self.assertEqual([int(s['step']) for s in after], [0, 1, 2, 3])
    rest = lambda state: {n: u for n, u in state.items() if n != 'step'}
    jax.tree.map(np.testing.assert_array_equal, *map(rest, after[1:3]))
    self.assertNotEqual(after[2]['ema']['w'], after[3]['ema']['w'])
    if at_once > 1:
      stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches)
      last, metrics = jax.jit(step_lib.several_steps(step))(state, stacked)
      assert_close(last, found)
      self.assertEqual(list(metrics['skipped']), skipped)
    # The loss leaves out what is masked away; the carry would not.
    batches[1]['mask'][4, 2] = False
    batches[1]['x'][4, 2] = np.nan
    _, metrics = alone(after[1], batches[1])
    self.assertTrue(metrics['skipped'])
    self.assertTrue(np.isfinite(metrics['loss']))

  def test_moving_average(self):
    tx = optimizers.Optimizer(*optax.sgd(0.1), frozen=False)
    step = jax.jit(
        step_lib.make_train_step(without_key, tx, seed=0, ema_decay=0.75)
    )
    state = make_state(tx, ema=True)
    expected = state['params']
    for number in range(3):
      state, _ = step(state, make_batch(number))
      expected = jax.tree.map(
          lambda e, p: 0.75 * e + 0.25 * p, expected, state['params']
      )
    assert_close(state['ema'], expected)

  @parameterized.parameters(1, 2)
  def test_what_is_frozen_skips_nothing(self, accumulate):
    tx = optimizers.make_optimizer(
        ConfigDict(dict(
            name='sgd', learning_rate=1.0, end_learning_rate=1.0,
            warmup_steps=0, schedule='constant', weight_decay=0.0,
            recurrent_rate_factor=1.0, clip=1.0, options={}, freeze=('b',),
            start_learning_rate=0.0, groups={},
        )),
        1, axes=dict(w=(), b=()), recurrent=dict(w=False, b=False),
    )

    def loss_fn(params, batch_stats, batch, carry, key):
      # The gradient of the root of 0 is not finite.
      losses = params['w'] * batch['x'] + jnp.sqrt(params['b'])
      sums = dict(loss=losses.sum(), weight=jnp.float32(losses.size))
      return sums['loss'], (sums, batch_stats, carry)

    step = step_lib.make_train_step(
        loss_fn, tx, seed=0, accumulate_steps=accumulate, skip_bad=True,
        ema_decay=0.5,
    )
    state = make_state(tx, ema=True)
    for name in ('params', 'ema'):
      state[name]['b'] = jnp.float32(0)
    after, metrics = jax.jit(step)(state, dict(x=jnp.full((4, 2), 0.25)))
    self.assertFalse(metrics['skipped'])
    self.assertEqual(metrics['grad_norm'], 0.25)
    self.assertEqual(after['params'], dict(w=3.75, b=0.0))
    self.assertEqual(after['ema'], dict(w=3.875, b=0.0))

  def test_evaluation_has_no_randomness(self):
    params, stats = Functional().initialize(0)
    sums = step_lib.make_eval_step(loss_fn)(params, stats, make_batch(0))
    loss, (expected, _, _) = loss_fn(params, stats, make_batch(0), None, None)
    assert_close(sums, expected)
    self.assertEqual(sums['loss'], loss)


class OneNumber(nnx.Module):
  """A model of one parameter, 1 in bfloat16."""

  def __init__(self, rngs):
    self.p = nnx.Param(jnp.ones((), jnp.bfloat16))


class Bfloat16Test(parameterized.TestCase):
  """Sums of small numbers, which bfloat16 cannot hold."""

  def train(self, loss, batch, steps, **options):
    """Trains `OneNumber` with SGD on the mean of `loss(p, x)`."""
    functional = state_lib.Functional(OneNumber)

    def loss_fn(params, batch_stats, x, carry, key):
      p = functional.merge(params, batch_stats).p[...]
      self.assertEqual(p.dtype, jnp.bfloat16)
      losses = loss(p, x.astype(p.dtype))
      sums = dict(loss=losses.sum(), weight=jnp.float32(losses.size))
      return losses.sum(), (sums, batch_stats, carry)

    rate = options.pop('rate', 0.1)
    tx = optimizers.Optimizer(*optax.sgd(rate), frozen=False)
    step = step_lib.make_train_step(loss_fn, tx, seed=0, **options)
    state = step_lib.initial_state(functional, tx, 0, ema=True)
    batches = jnp.broadcast_to(batch, (steps, *batch.shape))
    return jax.jit(step_lib.several_steps(step))(state, batches)[0]

  def test_moving_average(self):
    state = self.train(
        lambda p, x: (p - x) ** 2, jnp.full((1,), 3.0), 3000, ema_decay=0.999
    )
    average, p = 1.0, 1.0
    for _ in range(3000):
      p -= 0.2 * (p - 3)
      average = 0.999 * average + 0.001 * p
    self.assertAlmostEqual(average, 2.90, places=2)
    # The model has 3 as soon as that is what `p` is rounded to.
    self.assertAlmostEqual(float(state['ema']['p']), average, delta=0.01)

  def test_accumulation(self):
    state = self.train(
        lambda p, x: p * x, jnp.ones((1024,)), 1, rate=1.0,
        accumulate_steps=1024,
    )
    self.assertEqual(state['params']['p'], 0)  # It was 0.75.

  def test_small_rates(self):
    state = self.train(
        lambda p, x: p * x, jnp.ones((1,)), 100, rate=1e-4
    )
    self.assertAlmostEqual(float(state['params']['p']), 0.99, places=5)


if __name__ == '__main__':
  absltest.main()
