"""Tests of `models.PointProcess` and of the kind of task `events`."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import tasks

K = 3
CONFIG = models.ModelConfig(
    layer='min_gru', num_layers=1, features=8, mlp='none', vocab_size=K + 1,
    gap_mean=-1.0, gap_deviation=1.5, components=3,
)


def build(**fields):
  return models.PointProcess(CONFIG.replace(**fields), rngs=nnx.Rngs(0))


def events(batch=2, time=7):
  rng = np.random.default_rng(0)
  types = rng.integers(0, K + 1, (batch, time))
  gaps = rng.exponential(0.5, (batch, time)).astype(np.float32)
  return jnp.array(types), jnp.array(gaps)


class PointProcessTest(parameterized.TestCase):

  @parameterized.parameters('mixture', 'intensity')
  def test_densities_and_survival_agree(self, event_density):
    """The probability of an event by a time, and of none, add up to 1."""
    model = build(event_density=event_density)
    with jax.enable_x64(True):
      outputs = 2 * jax.random.normal(
          jax.random.key(0), (4, model.head.kernel.shape[1]), jnp.float64
      )
      # Far into both tails of the gaps, evenly on the scale of the logarithm.
      gaps = jnp.exp(jnp.linspace(-40.0, 3.0, 8001))[:, None]
      gaps = jnp.broadcast_to(gaps, (8001, 4))
      given = jnp.broadcast_to(outputs, (8001, *outputs.shape))
      density = jnp.exp(model.log_density(given, gaps)).sum(-1) * gaps
      step = 43 / 8000
      happened = jnp.cumsum((density[1:] + density[:-1]) / 2 * step, 0)
      left = jnp.exp(model.log_survival(given, gaps))
      self.assertLess(float(left[-1].min()), 0.5)
      np.testing.assert_allclose(happened + left[1:], 1, atol=1e-4)
      np.testing.assert_array_equal(
          model.log_survival(outputs, jnp.zeros(4)), np.zeros(4)
      )

  def test_likelihood_selects_the_type_or_the_survival(self):
    model, (types, gaps) = build(), events()
    _, outputs = model(types, gaps)
    found = model.log_likelihood(outputs, types, gaps)
    density = model.log_density(outputs, gaps)
    survival = model.log_survival(outputs, gaps)
    self.assertIn(K, np.asarray(types))
    for i in np.ndindex(types.shape):
      k = int(types[i])
      self.assertEqual(found[i], survival[i] if k == K else density[i][k])

  @parameterized.parameters('mixture', 'intensity')
  def test_a_gap_of_zero_at_the_end_has_a_finite_gradient(self, event_density):
    model = build(event_density=event_density)
    types, gaps = jnp.array([[K, 0]]), jnp.array([[0.0, 1e-8]])
    _, outputs = model(types, gaps)
    loss = lambda u: model.log_likelihood(u, jnp.array([[0, K]]), gaps[:, ::-1])
    found, gradient = jax.value_and_grad(lambda u: loss(u).sum())(outputs)
    self.assertTrue(np.isfinite(found))
    self.assertTrue(np.isfinite(gradient).all())
    self.assertEqual(float(jnp.abs(gradient[:, 1]).max()), 0)

  def test_steps_chunks_resets_and_masks(self):
    model, (types, gaps) = build(), events()
    reset = np.zeros((2, 7), bool)
    reset[:, 4] = True
    mask = np.ones((2, 7), bool)
    mask[0, 2] = False
    gaps = gaps.at[0, 2].set(jnp.nan)
    carry, outputs = model(types, gaps, reset=reset, mask=mask)
    state = None
    for t in range(7):
      state, one = model.step(
          state, types[:, t], gaps[:, t], reset=reset[:, t], mask=mask[:, t]
      )
      np.testing.assert_allclose(one, outputs[:, t], rtol=1e-5, atol=1e-6)
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(carry)):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    _, alone = model(types[:, 4:], gaps[:, 4:])
    np.testing.assert_allclose(alone, outputs[:, 4:], rtol=1e-5, atol=1e-6)

  def test_wrong_models_and_calls(self):
    for fields, message in (
        (dict(vocab_size=1), 'so at least 2, got 1'),
        (dict(bidirectional=True), 'bidirectional False'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        build(**fields)
    types, gaps = events()
    with self.assertRaisesRegex(ValueError, '`gaps` must be floating'):
      build()(types, types)
    with self.assertRaisesRegex(ValueError, r'numbers \(2, 7\)'):
      build()(types, gaps[:, 1:])


class TaskTest(absltest.TestCase):

  def test_metrics_are_per_event(self):
    types, gaps = events()
    targets = types.at[:, -1].set(K).at[0, 1].set(K)
    mask = jnp.ones(types.shape, bool).at[0, 1].set(False)
    batch = dict(
        inputs=types, gaps=gaps, targets=targets, target_gaps=gaps, mask=mask,
        true_log_likelihood=jnp.full(types.shape, -2.0),
    )
    task = tasks.EventPrediction(CONFIG)
    model = build()
    _, sums = task.forward(model, batch, None, train=False, key=None)
    found = task.predict(model, batch)
    is_event = np.asarray(mask & (targets < K))
    self.assertEqual(float(sums['weight']), is_event.sum())
    loss = -np.asarray(found['log_likelihood'])[np.asarray(mask)].sum()
    self.assertAlmostEqual(float(sums['loss']), loss, places=3)
    right = np.asarray(found['prediction'] == targets)[is_event].sum()
    self.assertEqual(float(sums['accuracy']), right)
    self.assertAlmostEqual(
        float(sums['excess']), loss - 2 * mask.sum(), places=3
    )


if __name__ == '__main__':
  absltest.main()
