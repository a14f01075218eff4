"""Tests of the kind of task `forecasting` and its models."""

import dataclasses
import functools
import json
import math
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import forecasts
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import restoring
from rnnzoo import tasks
from rnnzoo import training
from rnnzoo.data.series import csv_file
from rnnzoo.models import forecaster
from rnnzoo.training import evaluation
from rnnzoo.training import losses
from rnnzoo.training import sharding
from tests.experiments import commands

B, L, H, C, D, F = 3, 8, 4, 2, 5, 2
CONFIG = models.ModelConfig(
    layer='min_gru', num_layers=1, features=8, mlp='none', in_features=D,
    out_features=C, window=L, horizon=H,
)


def inputs(seed=0):
  return jax.random.normal(jax.random.key(seed), (B, L, D))


def build(**fields):
  return models.Forecaster(CONFIG.replace(**fields), rngs=nnx.Rngs(0))


class DLinearTest(parameterized.TestCase):

  def test_it_is_what_the_equations_say(self):
    config = CONFIG.replace(
        layer='dlinear', window_norm='none', layer_options=dict(kernel=5)
    )
    model = models.DLinear(config, rngs=nnx.Rngs(0))
    carry, found = model(inputs())
    self.assertIsNone(carry)
    weights = lambda m: (np.asarray(m.kernel[...]), np.asarray(m.bias[...]))
    (trend, b1), (season, b2) = map(weights, (model.trend, model.season))
    self.assertEqual(trend.shape, (L, H))
    for weight in (trend, b1, season, b2):  # Uniform, as PyTorch's.
      self.assertBetween(np.abs(weight).max(), 0.7 * L**-0.5, L**-0.5)
    for row in range(B):
      for column in range(C):
        x = np.asarray(inputs()[row, :, column])
        average = [
            np.mean([x[min(max(t + k, 0), L - 1)] for k in range(-2, 3)])
            for t in range(L)
        ]
        y = average @ trend + b1 + (x - average) @ season + b2
        np.testing.assert_allclose(
            found[row, :, column], y, rtol=1e-5, atol=1e-5
        )

  @parameterized.parameters(
      (dict(layer_options=dict(kernel=4)), 'an odd kernel only'),
      (dict(layer_options=dict(kernel=-1)), 'an odd kernel only'),
      (dict(layer_options=dict(kernels=5)), 'an odd kernel only'),
      (dict(distribution='gaussian'), "must be 'point' for model.layer"),
      (dict(horizon=0), 'model.horizon must be set'),
      (dict(out_features=6), 'must hold the columns to forecast'),
  )
  def test_wrong_configs(self, fields, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      models.DLinear(CONFIG.replace(**fields), rngs=nnx.Rngs(0))


class ForecasterTest(parameterized.TestCase):

  @parameterized.parameters(
      ('point', True, 4, ()), ('gaussian', False, 4, (2,)),
      ('quantile', True, 1, (9,)), ('quantile', False, 8, (9,)),
  )
  def test_shapes(self, name, separate_columns, patch, last):
    model = build(
        distribution=name, separate_columns=separate_columns, patch=patch,
        future_features=F,
    )
    carry, y = model(inputs(), future=jnp.ones((B, H, F)))
    self.assertIsNone(carry)
    self.assertEqual((y.shape, y.dtype), ((B, H, C, *last), jnp.float32))
    if name == 'gaussian':
      self.assertTrue((y[..., 1] > 0).all())
    if name == 'quantile':  # None is below one of a lower level.
      self.assertTrue((jnp.diff(y) >= 0).all())

  @parameterized.parameters(
      ('last', 1), ('mean', 1), ('standard', 1), ('standard', 3)
  )
  def test_forecasts_move_with_the_window(self, window_norm, scale):
    """Another level, and with `standard` another size, of one column."""
    model = build(window_norm=window_norm)
    _, y = model(inputs())
    x = inputs().at[..., 0].multiply(scale).at[..., 0].add(7)
    _, moved = model(x)
    expected = y.at[..., 0].multiply(scale).at[..., 0].add(7)
    np.testing.assert_allclose(moved, expected, rtol=5e-3, atol=5e-3)
    _, other = build(window_norm='none')(x)
    self.assertGreater(float(jnp.abs(other - y)[..., 0].min()), 0)

  def test_bands_move_with_the_window(self):
    for name, parts in (('gaussian', [7, 0]), ('quantile', [7] * 9)):
      model = build(distribution=name, window_norm='last')
      _, y = model(inputs())
      _, moved = model(inputs().at[..., :C].add(7))
      np.testing.assert_allclose(
          moved, y + jnp.array(parts), rtol=1e-4, atol=1e-4
      )

  def test_separate_columns(self):
    model = build()
    _, y = model(inputs())
    order = jnp.array([1, 0, 2, 3, 4])
    _, swapped = model(inputs()[..., order])
    np.testing.assert_allclose(swapped, y[..., ::-1], rtol=1e-5, atol=1e-6)
    # A column does not see another; all see the inputs that are no targets.
    _, changed = model(inputs().at[:, 3, 1].add(1))
    np.testing.assert_allclose(changed[..., 0], y[..., 0], rtol=1e-6)
    _, changed = model(inputs().at[:, 3, 4].add(1))
    self.assertTrue((jnp.abs(changed - y) > 1e-6).all())
    _, together = build(separate_columns=False)(inputs())
    _, changed = build(separate_columns=False)(inputs().at[:, 3, 1].add(1))
    self.assertTrue((jnp.abs(changed - together)[..., 0] > 1e-6).all())

  def test_what_is_known_ahead_counts_at_its_own_step(self):
    model = build(future_features=F)
    future = jnp.zeros((B, H, F))
    _, y = model(inputs(), future=future)
    _, changed = model(inputs(), future=future.at[:, 2].add(1))
    difference = np.abs(changed - y)
    self.assertTrue((difference[:, 2] > 1e-6).all())
    self.assertEqual(difference[:, [0, 1, 3]].max(), 0)

  def test_lengths_of_steps(self):
    model = build(layer='lru', patch=2)
    self.assertTrue(model.takes_dt)
    forecast = jax.jit(lambda dt: model(inputs(), dt=dt)[1])
    ones = np.ones((B, L), np.float32)
    # A patch is as long as its steps are, on average.
    longer, other = ones.copy(), ones.copy()
    longer[:, 2], other[:, 2:4] = 3, 2
    y, longer, other = map(forecast, (ones, longer, other))
    self.assertGreater(jnp.abs(longer - y).min(), 0)
    np.testing.assert_allclose(longer, other, rtol=1e-6)
    with self.assertRaisesRegex(ValueError, r'`dt` must be \(3, 8\), got'):
      model(inputs(), dt=ones[:, 1:])
    self.assertFalse(build().takes_dt)

  def test_wrong_calls(self):
    with self.assertRaisesRegex(errors.UserValueError, 'patch must divide'):
      build(patch=3)
    with self.assertRaisesRegex(ValueError, r'must be \[B, 8, 5\], got'):
      build()(inputs()[:, 1:])
    with self.assertRaisesRegex(ValueError, r'`future` must be \(3, 4, 2\)'):
      build(future_features=F)(inputs(), future=jnp.ones((B, H, 1)))
    with self.assertRaisesRegex(ValueError, 'future'):
      build(future_features=F)(inputs())


class LossTest(absltest.TestCase):

  def test_losses_are_those_of_a_loop(self):
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(6,)).astype(np.float32)
    mean, deviation = rng.normal(size=6), rng.uniform(0.5, 2, 6)
    found = losses.gaussian(
        jnp.array(np.stack([mean, deviation], -1)), jnp.array(targets)
    )
    quantiles = np.sort(rng.normal(size=(6, 9)))
    scores = losses.pinball(
        jnp.array(quantiles), jnp.array(targets), forecaster.QUANTILES
    )
    for i, y in enumerate(targets):
      z = (y - mean[i]) / deviation[i]
      self.assertAlmostEqual(
          float(found[i]),
          z**2 / 2 + math.log(deviation[i] * math.sqrt(2 * math.pi)), places=4,
      )
      total = 0
      for level, q in zip(forecaster.QUANTILES, quantiles[i]):
        total += level * (y - q) if y > q else (1 - level) * (q - y)
      self.assertAlmostEqual(float(scores[i]), 2 * total / 9, places=5)

  def test_metrics_of_a_known_forecast(self):
    y = jnp.array([[[[0.0, 1.0]], [[1.0, 2.0]]]])  # [B=1, H=2, C=1, 2]
    batch = dict(
        inputs=jnp.zeros((1, L, D)), targets=jnp.array([[[1.0], [99.0]]]),
        mask=jnp.array([[[True], [False]]]),
    )
    task = tasks.Forecasting(CONFIG.replace(distribution='gaussian'))
    model = lambda *args, **kwargs: (None, y)
    _, sums = task.forward(model, batch, None, train=False, key=None)
    expected = dict(
        loss=0.5 + math.log(2 * math.pi) / 2, mse=1, mae=1, coverage=1, weight=1
    )
    self.assertEqual(sums.keys(), expected.keys())
    for name, value in expected.items():
      self.assertAlmostEqual(float(sums[name]), value, places=5, msg=name)
    # The mask of a row that only fills up a batch.
    _, sums = task.forward(
        model, dict(batch, mask=jnp.array([False])), None, train=False, key=None
    )
    self.assertEqual(float(sums['weight']), 0)


class TrainingTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.path = commands.temporary_directory(cls) / 'waves.csv'
    csv_file.write_waves(cls.path, ('load', 'price', 'OT'), 300)

  def load(self, **fields):
    config = dict(
        name='csv_file', path=str(self.path), sequence_length=24, horizon=6,
    )
    return data.load(config | fields, batch_size=16, seed=0)

  @parameterized.parameters(
      ('dlinear', 'point', ()), ('lru', 'gaussian', ()),
      ('min_gru', 'quantile', ('price',)),
  )
  def test_it_is_trained_restored_and_drawn(self, layer, distribution, ahead):
    dataset = self.load(ahead=ahead)
    # As on a machine with one device, which compiles faster.
    make_mesh = sharding.make_mesh
    self.enter_context(mock.patch.object(
        sharding, 'make_mesh',
        lambda sizes, devices=None: make_mesh(sizes, jax.devices()[:1]),
    ))
    task = tasks.Forecasting(models.ModelConfig(
        layer=layer, num_layers=1, features=8, mlp='none', pooling='last',
        distribution=distribution, patch=4,
    ))
    workdir = commands.temporary_directory(self) / 'run'
    summary = training.train(
        task, dataset, workdir, total_steps=30, eval_every=15, save_every=15,
        tensorboard=False, optimizer=dict(learning_rate=2e-2, warmup_steps=0),
    )
    numbers = list(commands.metrics(workdir, 'train_loss').values())
    self.assertLess(numbers[-1], numbers[0])
    run = restoring.restore_run(workdir)
    mesh = sharding.make_mesh(dict(data=-1, fsdp=1, model=1, sequence=1))
    found = evaluation.predict(run.task, dataset, run.model, 'test', mesh)
    shape = dataset.source['examples']['test'], 6, 3 - len(ahead)
    self.assertEqual(found['prediction'].shape, shape)
    error = found['prediction'] - found['target']
    self.assertAlmostEqual(
        np.mean(error**2), summary['test_mse'], places=4
    )
    self.assertAlmostEqual(
        np.mean(np.abs(error)), summary['test_mae'], places=4
    )
    if distribution != 'point':
      inside = (found['low'] <= found['target']) & (
          found['target'] <= found['high']
      )
      self.assertAlmostEqual(
          inside.mean(), summary['test_coverage'], places=4
      )
      self.assertIn('between the quantiles', task.sentence(summary, dataset))
    forecast = forecasts.make(run, dataset, 'test', window=20)
    scale, offset = dataset.target_scale, dataset.target_offset
    np.testing.assert_allclose(
        forecast.prediction, found['prediction'][20] * scale + offset,
        rtol=1e-3, atol=1e-3,
    )
    self.assertEqual(forecast.band is None, distribution == 'point')
    image = pathlib.Path(workdir) / 'forecast.png'
    forecasts.draw(forecast, image, 'A run', ['OT'])
    self.assertEqual(image.read_bytes()[:4], b'\x89PNG')
    with self.assertRaisesRegex(errors.UserValueError, "no column 'wind' to"):
      forecasts.draw(forecast, image, 'A run', ['wind'])
    with self.assertRaisesRegex(errors.UserValueError, r'--window must be in'):
      forecasts.make(run, dataset, 'test', window=10**6)

  def test_predictions_where_numbers_are_missing(self):
    lines = self.path.read_text().splitlines()
    for row in (*range(260, 275), 280):
      lines[1 + row] = f'{lines[1 + row].split(",")[0]},,,1.5'
    lines[1 + 290] = f'{lines[1 + 290].split(",")[0]},,,'
    path = commands.temporary_directory(self) / 'gaps.csv'
    path.write_text('\n'.join(lines) + '\n')
    dataset = self.load(path=str(path), horizon=2, targets=('load', 'price'))
    task = tasks.Forecasting(models.ModelConfig(layer='dlinear')).bind(dataset)
    model = task.build(nnx.Rngs(0))
    mesh = sharding.make_mesh(
        dict(data=1, fsdp=1, model=1, sequence=1), jax.devices()[:1]
    )
    found = evaluation.predict(task, dataset, model, 'test', mesh)
    # A line for each window, also where all of its numbers are missing.
    count = dataset.source['examples']['test']
    self.assertEqual(found['target'].shape, (count, 2, 2))
    missing = np.isnan(found['target'])
    self.assertTrue(missing.all((1, 2)).any())
    self.assertFalse(missing.all())
    self.assertTrue(np.isfinite(found['prediction']).all())
    means = evaluation.evaluate_model(task, dataset, model, 'test', mesh)
    error = found['prediction'].astype(np.float64) - found['target']
    self.assertAlmostEqual(np.nanmean(error**2), means['mse'], places=5)
    self.assertAlmostEqual(np.nanmean(np.abs(error)), means['mae'], places=5)
    file = commands.temporary_directory(self) / 'predictions.jsonl'
    commands.imported('experiments.evaluate').write_predictions(found, file)
    strict = functools.partial(json.loads, parse_constant=self.fail)
    rows = list(map(strict, file.read_text().splitlines()))
    self.assertLen(rows, count)
    np.testing.assert_array_equal(
        [[[u is None for u in v] for v in row['target']] for row in rows],
        missing,
    )
    irregular = self.load(irregular=True)
    with self.assertRaisesRegex(errors.UserValueError, 'lengths .dt.*dlinear'):
      task.bind(irregular)

  def test_devices_share_windows(self):
    dataset = self.load()
    task = tasks.Forecasting(models.ModelConfig(
        layer='lru', num_layers=1, features=8, pooling='last'
    )).bind(dataset)
    model = task.build(nnx.Rngs(0))
    means = [
        evaluation.evaluate_model(
            task, dataset, model, 'test', sharding.make_mesh(
                dict(data=count, fsdp=1, model=1, sequence=sequence),
                jax.devices()[: count * sequence],
            ),
        )
        for count, sequence in ((1, 1), (2, 2))
    ]
    for metric, value in means[0].items():
      self.assertAlmostEqual(means[1][metric], value, places=5)

  def test_forecasts_are_for_this_kind_only(self):
    dataset = self.load()
    numbers = data.from_arrays(
        np.zeros((40, 5, 2)), np.arange(40.0), batch_size=8
    )
    for kind, other in (
        (tasks.Forecasting, numbers), (tasks.Classification, dataset),
        (tasks.Regression, dataset),
    ):
      with self.assertRaisesRegex(
          errors.UserValueError, f'{kind.name}, but {other.name} is a data set'
      ):
        kind(dataclasses.replace(CONFIG, pooling='last')).bind(other)


if __name__ == '__main__':
  absltest.main()
