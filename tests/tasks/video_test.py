"""Tests of the kind of task `video`, of its model and of Moving MNIST."""

import dataclasses
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import rollouts
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import restoring
from rnnzoo import tasks
from rnnzoo import training
from rnnzoo.data.images import moving_mnist
from rnnzoo.models import video
from rnnzoo.training import evaluation
from rnnzoo.training import sharding
from tests.experiments import commands

B, T, SIZE = 2, 4, 12
CONFIG = models.ModelConfig(
    layer='conv_s5,conv_lstm', num_layers=2, features=4, norm='layer',
    mlp='geglu', image_shape=(SIZE, SIZE, 1),
)
RULES = types.SimpleNamespace(
    digits=2, size=64, digit_size=28, sequence_length=30, horizon=30
)


class MovingMNISTTest(parameterized.TestCase):

  def test_a_digit_moves_straight_and_comes_back_from_edges(self):
    rules = types.SimpleNamespace(**{**vars(RULES), 'digits': 1})
    images = np.full((1, 28, 28), 200, np.uint8)
    frames = moving_mnist.draw(np.random.default_rng(3), images, rules)
    corners = []
    for frame in frames[..., 0]:
      rows, columns = np.nonzero(frame)
      self.assertEqual(
          (len(rows), np.ptp(rows), np.ptp(columns)), (28 * 28, 27, 27)
      )
      corners.append((rows.min(), columns.min()))
    moves = np.diff(np.array(corners, float), axis=0)
    free = (np.array(corners)[:-1] % 36 > 4).all(1) & (
        np.array(corners)[:-1] % 36 < 32
    ).all(1)
    # Whole pixels: each axis may be off by less than one.
    speeds = np.abs(moves[free])
    self.assertGreater(free.sum(), 10)
    np.testing.assert_array_less(np.ptp(speeds, axis=0), 1.01)
    self.assertBetween(np.hypot(*speeds.mean(0)), 3.3, 3.9)
    self.assertTrue((moves > 0).any(0).all() and (moves < 0).any(0).all())

  def test_digits_come_from_their_own_images(self):
    """Training, validation and test share no image; the last two are fixed."""
    brightness = dict(train=[50] * 22 + [90] * 2, test=[200] * 6)
    read = {
        name: (np.stack([np.full((28, 28), v, np.uint8) for v in values]), 0)
        for name, values in brightness.items()
    }
    config = dict(name='moving_mnist', sequence_length=2, horizon=1,
                  eval_examples=5)
    with mock.patch('rnnzoo.data.builders.smnist.read', lambda _: read):
      for small in ({}, dict(size=32, digit_size=14)):
        first, other = (
            data.load(config | small, batch_size=4, seed=seed)
            for seed in (0, 1)
        )
        for split, value in (('train', 50), ('validation', 90), ('test', 200)):
          batches = [
              [u.train_batch(s) for s in (1, 2)] if split == 'train'
              else list(u.eval_batches(split)) for u in (first, other)
          ]
          found = {k: np.concatenate([b[k] for b in batches[0]])
                   for k in ('inputs', 'targets')}
          self.assertEqual(set(np.unique(found['inputs'])), {0, value})
          self.assertEqual(set(np.unique(found['targets'])), {0, value})
          same = np.array_equal(batches[0][0]['inputs'],
                                batches[1][0]['inputs'])
          self.assertEqual(same, split != 'train')
          if split != 'train':
            self.assertEqual(sum(b['mask'].sum() for b in batches[0]), 5)

  @parameterized.parameters(
      (dict(digits=6), 'data.digits must be at most 5: more digits of 28'),
      (dict(size=28), 'data.size must be larger than data.digit_size 28'),
      (dict(digit_size=15), 'data.digit_size must be 28, 14 or 7'),
      (dict(horizon=0), 'data.horizon must be'),
  )
  def test_what_does_not_fit(self, fields, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      data.load(dict(name='moving_mnist', **fields), batch_size=4, seed=0)

  def test_missing_files(self):
    directory = commands.temporary_directory(self)
    config = dict(name='moving_mnist', data_dir=str(directory))
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        'prepare_datasets.py smnist.*--manual_dir=DIR.*idx3-ubyte.*https?://',
    ):
      data.load(config, batch_size=4, seed=0)

  def test_shrunk_images_are_means(self):
    images = np.arange(28 * 28, dtype=np.uint8).reshape(1, 28, 28)
    expected = images.reshape(1, 7, 4, 7, 4).mean((2, 4))
    found = moving_mnist.shrink(images, 7)
    np.testing.assert_allclose(found, expected, atol=0.5)


class ModelTest(parameterized.TestCase):

  def test_pixels_become_channels_and_come_back(self):
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    small = video._halve(x)
    np.testing.assert_array_equal(small[1, 1, 2, 3 * 3:], x[1, 3, 5])
    np.testing.assert_array_equal(video._double(small), x)

  def test_sequences_steps_and_rollouts_agree(self):
    """Chunks, single steps, resets, padding, and predictions fed back."""
    model = models.VideoPredictor(CONFIG, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (B, T, SIZE, SIZE, 1), np.uint8)
    reset = np.zeros((B, T), bool)
    reset[1, 2] = True
    mask = np.ones((B, T), bool)
    mask[0, 1] = False

    @jax.jit
    def run(frames):
      _, whole = model(frames, reset=reset, mask=mask)
      carry, y = model.initialize_carry(B), []
      for t in range(T):
        carry, y_t = model.step(
            carry, frames[:, t], reset=reset[:, t], mask=mask[:, t]
        )
        y.append(y_t)
      first = jax.nn.sigmoid(y[-1])
      _, rolled = model.rollout(carry, first, 2)
      longer = jnp.concatenate([first[:, None], rolled[:, :1]], axis=1)
      _, fed = model(longer, carry)
      return whole, jnp.stack(y, 1), rolled, jax.nn.sigmoid(fed)

    whole, steps, rolled, fed = run(frames)
    self.assertEqual((whole.shape, whole.dtype), (frames.shape, jnp.float32))
    self.assertEqual(rolled.shape, (B, 2, SIZE, SIZE, 1))
    np.testing.assert_allclose(steps, whole, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(rolled, fed, rtol=2e-4, atol=2e-5)
    self.assertEqual(np.abs(whole[0, 1]).max(), 0)

  @parameterized.parameters(
      (dict(halvings=3), r'halvings 3 needs frames .* multiples of 8, got 12'),
      (dict(layer='lru'), 'lru reads vectors.*: .*conv_lstm'),
      (dict(conv_kernel=4), 'conv_kernel must be 0 in a model of videos'),
      (dict(bidirectional=True), 'bidirectional must be False in a model'),
      (dict(image_shape=()), 'needs model.image_shape'),
  )
  def test_wrong_configs(self, fields, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      models.VideoPredictor(CONFIG.replace(**fields), rngs=nnx.Rngs(0))

  def test_wrong_calls(self):
    model = models.VideoPredictor(
        CONFIG.replace(num_layers=1), rngs=nnx.Rngs(0)
    )
    with self.assertRaisesRegex(ValueError, r'must be \[B, T, 12, 12, 1\]'):
      model(jnp.zeros((B, T, SIZE, SIZE)))
    with self.assertRaisesRegex(ValueError, r'`x` must be \[B, T, 3, 3, D\]'):
      model.backbone(jnp.zeros((B, T, 3, 4, 4)))


class TaskTest(absltest.TestCase):

  def test_metrics_of_a_known_model(self):
    """A model that always says that a pixel is as likely on as off."""
    seen = np.zeros((B, 2, SIZE, SIZE, 1), np.uint8)
    targets = np.zeros((B, 3, SIZE, SIZE, 1), np.uint8)
    targets[0, :, 0, :2] = 255
    logits = lambda frames: jnp.zeros(frames.shape)
    model = mock.Mock(side_effect=lambda x, *_, **__: (None, logits(x)))
    model.rollout = lambda carry, frame, count: (
        carry, jnp.repeat(frame[:, None], count, 1)
    )
    batch = dict(inputs=seen, targets=targets, mask=np.array([True, False]))
    task = tasks.Video(CONFIG)
    _, sums = task.forward(model, batch, None, train=False, key=None)
    expected = dict(
        loss=np.log(2), next_mse=SIZE**2 / 4, mse=SIZE**2 / 4, copy_mse=2,
        weight=1,
    )
    self.assertEqual(sums.keys(), expected.keys())
    for name, value in expected.items():
      self.assertAlmostEqual(float(sums[name]), value, places=4, msg=name)
    _, sums = task.forward(model, batch, None, train=True, key=None)
    self.assertNotIn('mse', sums)
    found = task.predict(model, batch)
    self.assertEqual(found['prediction'].shape, targets.shape)
    np.testing.assert_allclose(found['copy_mse'], [[2] * 3, [0] * 3])

  def test_it_is_trained_restored_and_drawn(self):
    directory = commands.temporary_directory(self)
    config = dict(
        name='moving_mnist', data_dir=str(directory), size=20, digit_size=14,
        sequence_length=3, horizon=2, eval_examples=10,
    )
    data.find('moving_mnist').write_fixture(directory, config)
    dataset = data.load(config, batch_size=8, seed=0)
    # As on a machine with one device, which compiles faster.
    make_mesh = sharding.make_mesh
    self.enter_context(mock.patch.object(
        sharding, 'make_mesh',
        lambda sizes, devices=None: make_mesh(sizes, jax.devices()[:1]),
    ))
    model = dataclasses.replace(
        CONFIG, layer='conv_lstm', num_layers=1, image_shape=()
    )
    task, workdir = tasks.Video(model), directory / 'run'
    summary = training.train(
        task, dataset, workdir, total_steps=20, eval_every=10, save_every=10,
        tensorboard=False, optimizer=dict(learning_rate=2e-2, warmup_steps=0),
    )
    numbers = list(commands.metrics(workdir, 'train_loss').values())
    self.assertLess(numbers[-1], numbers[0])
    self.assertRegex(
        task.sentence(summary, dataset),
        r'test: squared error of 2 predicted frames \d+.* \(copying the last',
    )
    run = restoring.restore_run(workdir)
    mesh = sharding.make_mesh(dict(data=-1, fsdp=1, model=1, sequence=1))
    found = evaluation.predict(run.task, dataset, run.model, 'test', mesh)
    truth = found['target'] / 255
    error = np.square(found['prediction'] - truth).sum((2, 3, 4)).mean()
    self.assertAlmostEqual(error, summary['test_mse'], places=3)
    lines = run.task.details(found, dataset)
    self.assertLen(lines, 2)
    self.assertIn('frame 4: squared error', lines[0])
    rollout = rollouts.make(run, dataset, 'test', [9, 1])
    np.testing.assert_allclose(
        rollout.prediction, found['prediction'][[9, 1]], rtol=1e-4, atol=1e-5
    )
    image = directory / 'rollout.gif'
    rollouts.draw(rollout, image, scale=2)
    with Image.open(image) as gif:
      self.assertEqual(gif.n_frames, 5)
    with Image.open(image.with_suffix('.png')) as strip:
      self.assertGreater(strip.size[0], 5 * 20)
    with self.assertRaisesRegex(errors.UserValueError, r'in \[0, 10\), the'):
      rollouts.make(run, dataset, 'test', [10])

  def test_videos_are_for_this_kind_only(self):
    numbers = data.from_arrays(
        np.zeros((40, 5, 2)), np.arange(40.0), batch_size=8
    )
    with self.assertRaisesRegex(errors.UserValueError, 'is video, but'):
      tasks.Video(CONFIG).bind(numbers)


if __name__ == '__main__':
  absltest.main()
