"""Streams, and learners beside RTRL: truncation, least squares."""

import types

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo import online
from rnnzoo.online import regression
from rnnzoo.online import streams
from tests.experiments import commands

CONFIG = types.SimpleNamespace(**{
    name: field.default for name, field in regression.FIELDS.items()
} | dict(features=4, srnn_window=3))


class TruncatedTest(absltest.TestCase):

  def test_long_windows_are_exact_and_short_ones_are_not(self):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
      options = dict(param_dtype=jnp.float64, rngs=nnx.Rngs(0))
      model = online.Stack(
          layers.GRU(3, **options), nnx.Linear(3, 2, **options)
      )
      loss_fn = lambda y, target: ((y - target) ** 2).sum()
      given = dict(
          inputs=rng.standard_normal((2, 8, 3)),
          targets=rng.standard_normal((2, 8, 2)),
          reset=rng.random((2, 8)) < 0.15,
          mask=rng.random((2, 8)) < 0.8,
      )
      found = {}
      for steps in (2, 8):
        learner = online.Truncated(
            model, loss_fn, steps=steps, input_shape=(3,)
        )
        found[steps] = online.gradient_error(learner, learner.params, **given)
    self.assertLess(found[8][''][0], 1e-10)
    self.assertBetween(found[2]['parts.0'][0], 1e-3, 1)
    self.assertLess(found[2]['parts.1'][0], 1e-10)  # Reads the exact state.

  def test_wrong_steps(self):
    with self.assertRaisesRegex(ValueError, '`steps` must be at least 1'):
      online.Truncated(online.Stack(), None, steps=0, input_shape=(1,))


class LeastSquaresTest(absltest.TestCase):

  def test_each_prediction_is_that_of_a_fit_to_the_past(self):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1, 12, 1)), rng.standard_normal((1, 12, 2))
    with jax.enable_x64(True):
      found = online.least_squares(
          jnp.array(x), jnp.array(y), lags=2, forgetting=0.9,
          regularization=0.5,
      )
    read = np.stack([np.ones(12), x[0, :, 0], np.append(0, x[0, :-1, 0])], -1)
    for t in range(12):
      weight = 0.9 ** np.arange(t)[::-1]
      left = (read[:t].T * weight) @ read[:t] + 0.5 * 0.9**t * np.eye(3)
      fit = np.linalg.solve(left, (read[:t].T * weight) @ y[0, :t])
      np.testing.assert_allclose(found[0, t], read[t] @ fit, atol=1e-9)
    with self.assertRaisesRegex(ValueError, '`lags` must be at least 1'):
      online.least_squares(x, y, lags=0)


class StreamsTest(parameterized.TestCase):

  @parameterized.parameters(*streams.GENERATED)
  def test_generated(self, name):
    config = types.SimpleNamespace(name=name, length=400, path='')
    stream = streams.load(config, 0)
    self.assertEqual(stream.inputs.shape, (400, 1))
    self.assertAlmostEqual(stream.targets.mean(), 0, places=9)
    self.assertAlmostEqual(stream.targets.var(), 1, places=9)
    same, other = streams.load(config, 0), streams.load(config, 1)
    np.testing.assert_array_equal(same.targets, stream.targets)
    self.assertGreater(np.abs(other.targets - stream.targets).max(), 0.1)
    if name != 'narma':
      np.testing.assert_array_equal(stream.inputs[1:], stream.targets[:-1])

  def test_narma_is_what_the_equation_says(self):
    """A fit of the four terms of the equation leaves nothing over."""
    stream = streams.narma(np.random.default_rng(0), 300)
    # Standardising is linear, so the terms are those of these columns.
    u, y = stream.inputs[:, 0], stream.targets[:, 0]
    t = np.arange(20, 300)
    last = lambda v, lag: v[t - lag]
    sums = sum(last(y, lag) for lag in range(1, 11))
    read = np.stack([
        np.ones(len(t)), last(y, 1), sums, last(y, 1) * sums,
        last(u, 0), last(u, 9), last(u, 0) * last(u, 9),
    ], -1)
    fit, *_ = np.linalg.lstsq(read, y[t], rcond=None)
    self.assertLess(np.abs(read @ fit - y[t]).max(), 1e-9)

  def test_packaged(self):
    path = commands.temporary_directory(self) / 'my.csv'
    config = types.SimpleNamespace(name='elnino', length=0, path=str(path))
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'There is no file .*my.csv. pip install'
    ):
      streams.load(config, 0)
    path.write_text('year,a,b\n1950,1,2\n1951,,5\n')
    found = streams.load(config, 0)
    scale, mean = np.std([2, 2, 5]), 3
    np.testing.assert_allclose(found.targets[:, 0] * scale + mean, [2, 2, 5])
    for text, message in (
        ('year,a\n1950,x\n', "line 2: expected a number, got 'x'"),
        ('year,a\n1950,1\n', 'at least three numbers, all finite.* got 1'),
        ('year,a\n1,1\n2,0\n3,0\n', 'differ after the first one, got 3'),
        ('year,a\n1,nan\n2,0\n3,1\n', 'all finite'),
        ('year,a\n1,\udcff\n2,0\n3,1\n', 'cannot be read as CSV in UTF-8'),
    ):
      path.write_text(text, errors='surrogateescape')
      with self.assertRaisesRegex(errors.UserValueError, message):
        streams.load(config, 0)


class LearnerTest(parameterized.TestCase):

  @parameterized.parameters(
      ('gru', 'gru cannot learn so: GRU is not diagonal: .* gru_10'),
      ('lrux', 'no learner .lrux.; .* Did you mean "lru"'),
      ('lstm_0', 'no learner .lstm_0.'), ('linear', 'no learner .linear.'),
      ('srnn_3', 'no learner .srnn_3.'), ('conv_lstm_3', 'no learner .conv'),
  )
  def test_wrong_names(self, name, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      regression.make(name, CONFIG)

  def test_an_error_that_is_not_finite(self):
    learner = regression.Learner(
        lambda seed: None, lambda _, x, y: jnp.log(y).sum((0, 2)), 0
    )
    stream = streams.Stream(np.ones((3, 1)), np.array([[1.0], [2.0], [-1.0]]))
    with self.assertRaisesRegex(
        errors.UserError, 'at step 2. Try .* for linear a forgetting closer'
    ):
      regression.run(learner, stream, 0, {})


if __name__ == '__main__':
  absltest.main()
