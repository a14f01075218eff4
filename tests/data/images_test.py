"""Digits, and MNIST and CIFAR-10 as they are read from small fixtures."""

import os
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import models
from rnnzoo.data.builders import cifar10 as cifar10_builder
from rnnzoo.data.builders import smnist as builder
from rnnzoo.data.images import cifar10
from rnnzoo.data.images import digits
from rnnzoo.data.images import smnist
from rnnzoo.models import inputs
from sklearn import datasets


def rows(dataset, split):
  batches = [
      {key: array[batch['mask']] for key, array in batch.items()}
      for batch in dataset.eval_batches(split)
  ]
  return tuple(
      np.concatenate([batch[key] for batch in batches])
      for key in ('inputs', 'targets')
  )


class DigitsTest(parameterized.TestCase):

  def load(self, batch_size=32, seed=0, **fields):
    config = dict(name='digits') | fields
    return data.load(config, batch_size=batch_size, seed=seed)

  def test_splits(self):
    dataset = self.load()
    self.assertEqual(
        dataset.source['examples'], dict(train=1078, validation=360, test=359)
    )
    whole = digits.read()
    seen = {image.tobytes(): i for i, image in enumerate(whole.inputs)}
    self.assertLen(seen, 1797)  # No image comes twice.
    found = []
    for split, share in (('validation', 0.2), ('test', 0.2)):
      x, y = rows(dataset, split)
      index = [seen[u.tobytes()] for u in x]
      np.testing.assert_array_equal(whole.targets[index], y)
      np.testing.assert_allclose(
          np.bincount(y), share * np.bincount(whole.targets), atol=2
      )
      found += index
    for step in range(1, 35):
      for x in dataset.train_batch(step)['inputs']:
        found.append(seen[x.tobytes()])
    self.assertEqual(set(found), set(range(1797)))
    self.assertLen(set(found[:719]), 719)
    self.assertNoCommonElements(found[:719], found[719:])
    other = self.load(seed=1)  # Runs with other seeds have the same splits.
    x = rows(dataset, 'test')[0]
    np.testing.assert_array_equal(rows(other, 'test')[0], x)
    self.assertEqual((x.min(), x.max(), x.dtype), (0, 16, np.uint8))
    self.assertEqual(dataset.input_scale, (16,))

  def test_pixels_and_rows(self):
    pixels, images = self.load(), self.load(sequence='rows')
    self.assertEqual(
        (pixels.sequence_length, pixels.in_features, pixels.unit),
        (64, 1, 'pixels'),
    )
    self.assertEqual(
        (images.sequence_length, images.in_features, images.unit),
        (8, 8, 'rows'),
    )
    x, y = (set_.train_batch(2)['inputs'] for set_ in (pixels, images))
    np.testing.assert_array_equal(x.reshape(32, 8, 8), y)
    images = datasets.load_digits().images
    for image in y:
      self.assertTrue((image == images).all((1, 2)).any())

  def test_baselines(self):
    found = self.load().baselines()
    self.assertBetween(found['majority_accuracy'], 0.09, 0.12)
    self.assertBetween(found['centroid_accuracy'], 0.85, 0.95)

  def test_without_scikit_learn(self):
    with (
        mock.patch.dict(sys.modules, {'sklearn': None}),
        self.assertRaisesRegex(
            errors.UserFileNotFoundError, 'pip install scikit-learn$'
        ) as caught,
    ):
      self.load()
    self.assertNotIn('\n', str(caught.exception))


class SMNISTTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(
        cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    smnist.write_fixture(cls.directory, None)

  def load(self, **fields):
    config = dict(name='smnist', data_dir=str(self.directory)) | fields
    return data.load(config, batch_size=8, seed=0)

  def test_splits(self):
    (images, labels), (test, test_labels) = builder.read(
        self.directory
    ).values()
    dataset = self.load()
    self.assertEqual(
        dataset.source['examples'], dict(train=220, validation=20, test=60)
    )
    for split, x, y in (
        ('validation', images[220:], labels[220:]), ('test', test, test_labels)
    ):
      found, targets = rows(dataset, split)
      np.testing.assert_array_equal(targets, y)
      np.testing.assert_array_equal(found, x.reshape(-1, 784, 1))
      self.assertEqual((found.dtype, dataset.input_scale), (np.uint8, (255,)))
    trained = {
        x.tobytes() for step in range(1, 29)
        for x in dataset.train_batch(step)['inputs']
    }
    self.assertLen(trained, 220)
    held = {x.tobytes() for x in rows(dataset, 'validation')[0]}
    self.assertNoCommonElements(trained, held)

  def test_rows(self):
    pixels, images = self.load(), self.load(sequence='rows')
    np.testing.assert_array_equal(
        pixels.train_batch(3)['inputs'].reshape(8, 28, 28),
        images.train_batch(3)['inputs'],
    )

  @parameterized.parameters(*smnist.PERMUTATIONS)
  def test_permutations(self, name):
    order = smnist.PERMUTATIONS[name]()
    np.testing.assert_array_equal(np.sort(order), np.arange(784))
    plain, permuted = self.load(), self.load(permutation=name)
    for batch, expected in (
        (permuted.train_batch(2), plain.train_batch(2)),
        (permuted.eval_batches('test')[1], plain.eval_batches('test')[1]),
    ):
      for t in (0, 1, 500, 783):
        np.testing.assert_array_equal(
            batch['inputs'][:, t], expected['inputs'][:, order[t]]
        )
      np.testing.assert_array_equal(batch['targets'], expected['targets'])

  def test_the_permutations_are_the_published_ones(self):
    order = smnist.bit_reversal()
    self.assertEqual(order[:6].tolist(), [0, 512, 256, 768, 128, 640])
    self.assertEqual([
        int(f'{i:010b}'[::-1], 2) for i in range(1024)
        if int(f'{i:010b}'[::-1], 2) < 784
    ], order.tolist())
    drawn = smnist.PERMUTATIONS['seed_92916']()
    self.assertLess(np.mean(drawn == np.arange(784)), 0.02)

  def test_bad_fields(self):
    for fields, message in (
        (dict(permutation='bits'), "one of '', bit_reversal, seed_92916, got"),
        (dict(sequence='row'), 'Did you mean "rows"'),
        (
            dict(sequence='rows', permutation='bit_reversal'),
            'needs data.sequence=pixels',
        ),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        self.load(**fields)


class Cifar10Test(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(
        cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    cifar10.write_fixture(cls.directory, None)
    cls.arrays = cifar10_builder.read(cls.directory)

  def load(self, **fields):
    config = dict(name='cifar10', data_dir=str(self.directory)) | fields
    return data.load(config, batch_size=30, seed=0)

  def test_splits(self):
    (images, labels), (test, test_labels) = self.arrays.values()
    dataset = self.load(color='rgb')
    self.assertEqual(
        dataset.source['examples'], dict(train=270, validation=30, test=60)
    )
    for split, x, y in (
        ('validation', images[270:], labels[270:]), ('test', test, test_labels)
    ):
      found, targets = rows(dataset, split)
      np.testing.assert_array_equal(targets, y)
      np.testing.assert_array_equal(found, x.reshape(len(x), 1024, 3))
    seen = np.concatenate([dataset.train_batch(i + 1)['targets']
                           for i in range(9)])
    np.testing.assert_array_equal(np.sort(seen), np.sort(labels[:270]))
    self.assertEqual(dataset.class_names[3], 'cat')

  def test_normalisation(self):
    """The model computes what the code of S4 does."""
    x = self.arrays['test'][0][:30].astype(np.float64)
    luma = 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]
    wanted = dict(
        grey=(luma[..., None] / 255 - 122.6 / 255) / (61 / 255),
        rgb=(x / 255 - [0.4914, 0.4822, 0.4465]) / [0.247, 0.243, 0.261],
    )
    for color, error in (('grey', 0.5 / 61), ('rgb', 0)):  # Grey is rounded.
      for sequence in ('pixels', 'rows'):
        dataset = self.load(color=color, sequence=sequence)
        found = dataset.eval_batches('test')[0]['inputs']
        self.assertEqual(found.dtype, np.uint8)
        model = models.ModelConfig(
            in_features=dataset.in_features, input_scale=dataset.input_scale,
            input_offset=dataset.input_offset,
        )
        np.testing.assert_allclose(
            inputs.normalize(model, jnp.asarray(found)),
            wanted[color].reshape(found.shape), atol=error + 1e-5,
        )

  @parameterized.parameters(('grey', 1), ('rgb', 3))
  def test_pixels_and_rows(self, color, channels):
    pixels = self.load(color=color)
    lines = self.load(color=color, sequence='rows')
    x, y = (u.train_batch(2)['inputs'] for u in (pixels, lines))
    self.assertEqual(x.shape, (30, 1024, channels))
    self.assertEqual(y.shape, (30, 32, 32 * channels))
    np.testing.assert_array_equal(x.ravel(), y.ravel())
    found = lines.baselines()
    self.assertAlmostEqual(found['majority_accuracy'], 0.1)
    self.assertEqual(found['centroid_accuracy'], 1)  # Bars are easy.


class RealTest(absltest.TestCase):

  def test_the_published_sizes(self):
    data_dir = pathlib.Path(os.environ.get('RNNZOO_DATA_DIR') or '.')
    if not (data_dir / 'smnist').exists():
      self.skipTest('RNNZOO_DATA_DIR names no directory with smnist')
    dataset = data.load(
        dict(name='smnist', data_dir=str(data_dir)), batch_size=50, seed=0
    )
    self.assertEqual(
        dataset.source['examples'],
        dict(train=55_000, validation=5_000, test=10_000),
    )
    # Digits of the test split, from 0 to 9, as they are counted everywhere.
    self.assertEqual(
        np.bincount(rows(dataset, 'test')[1]).tolist(),
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    )
    found = dataset.baselines()
    self.assertAlmostEqual(found['majority_accuracy'], 0.1135)
    self.assertBetween(found['centroid_accuracy'], 0.81, 0.83)


if __name__ == '__main__':
  absltest.main()
