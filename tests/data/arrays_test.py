"""A person's own arrays: what is learned, splits, masks, and bad input."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data import examples

N, T, D = 60, 7, 3
LABELS = np.arange(N) % 3


def rng():
  return np.random.default_rng(0)


def vectors(n=N):
  """`x[i]` says `i` at its first number."""
  x = rng().normal(size=(n, T, D))
  x[:, 0, 0] = np.arange(n)
  return x


def images():
  """uint8 `[N, T, 2, 3, 1]`; `x[i]` says `i` at its first pixel."""
  x = rng().integers(256, size=(N, T, 2, 3, 1), dtype=np.uint8)
  x[:, 0, 0, 0, 0] = np.arange(N)
  return x


def everything(dataset, split):
  """The rows of an evaluation split that count, and one epoch of training."""
  if split == 'train':
    steps = -(-dataset.source['examples']['train'] // dataset.batch_size)
    batches = [dataset.train_batch(step + 1) for step in range(steps)]
  else:
    batches = dataset.eval_batches(split)
  rows = {}
  for batch in batches:
    mask = batch.get('mask', np.full(len(batch['inputs']), True))
    if mask.ndim > 1:
      mask = mask.any(1)
    for key, array in batch.items():
      rows.setdefault(key, []).extend(array[mask])
  return {key: np.array(array) for key, array in rows.items()}


def numbers(dataset, split):
  return everything(dataset, split)['inputs'][:, 0, 0].astype(int).tolist()


class KindTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('labels', LABELS, 'classification', False, 3, 0),
      ('column_of_labels', LABELS[:, None], 'classification', False, 3, 0),
      ('booleans', LABELS == 1, 'classification', False, 2, 0),
      ('bytes', LABELS.astype(np.uint8), 'classification', False, 3, 0),
      ('a_list', LABELS.tolist(), 'classification', False, 3, 0),
      (
          'labels_of_steps', rng().integers(4, size=(N, T)), 'classification',
          True, 4, 0,
      ),
      ('number', LABELS * 0.5, 'regression', False, 0, 1),
      ('numbers', rng().normal(size=(N, 5)), 'regression', False, 0, 5),
      (
          'numbers_of_steps', rng().normal(size=(N, T, 2)), 'regression', True,
          0, 2,
      ),
  )
  def test_targets_decide(self, y, task, per_step, classes, out_features):
    dataset = data.from_arrays(vectors(), y, batch_size=8)
    self.assertEqual(
        (dataset.task, dataset.per_step, dataset.num_classes,
         dataset.out_features, dataset.in_features, dataset.vocab_size),
        (task, per_step, classes, out_features, D, 0),
    )
    found = everything(dataset, 'test')
    order = found['inputs'][:, 0, 0].astype(int)
    expected = np.asarray(y)[order]
    np.testing.assert_allclose(
        found['targets'], expected.reshape(found['targets'].shape), rtol=1e-6
    )
    np.testing.assert_allclose(
        found['inputs'], vectors()[order].astype(np.float32)
    )

  def test_the_task_can_be_chosen(self):
    dataset = data.from_arrays(
        vectors(), LABELS.astype(float), batch_size=8, task='classification'
    )
    self.assertEqual(dataset.num_classes, 3)
    dataset = data.from_arrays(
        vectors(), LABELS, batch_size=8, task='regression'
    )
    self.assertEqual(dataset.train_batch(1)['targets'].shape, (8, 1))
    self.assertEqual(dataset.train_batch(1)['targets'].dtype, np.float32)

  def test_targets_that_are_later_inputs(self):
    x, tokens = vectors(), rng().integers(3, size=(N, T))
    lengths = 4 + np.arange(N) % 4
    later = lambda u, steps: np.concatenate(
        [u[:, steps:], rng().permutation(u)[:, :steps]], axis=1
    )
    found = lambda x, y, **more: data.from_arrays(
        x, y, batch_size=8, **more
    ).forecast
    for steps in (1, 2, 3):
      y = later(x, steps)
      self.assertTrue(found(x, y))
      self.assertTrue(found(x, y[..., 1:2]))
      self.assertTrue(found(tokens, later(tokens, steps)))
      ends = np.arange(T) + steps < lengths[:, None]
      ragged = np.where(ends[..., None], y, 0)
      self.assertTrue(found(x, ragged, lengths=lengths))
      self.assertFalse(found(x, ragged))
      self.assertFalse(found(x, y, forecast=False))
    for y in (x, np.roll(x, 1, axis=1), 2 * later(x, 1), x[:, 1], LABELS):
      self.assertFalse(found(x, y))
    self.assertTrue(found(x, 2 * later(x, 1), forecast=True))
    self.assertFalse(found(tokens, tokens % 2))
    self.assertFalse(found(x, x, lengths=np.ones(N, int)))

  def test_tokens_and_series(self):
    tokens = rng().integers(11, size=(N, T))
    tokens[5, 5] = 10
    dataset = data.from_arrays(tokens, LABELS, batch_size=8)
    self.assertEqual((dataset.vocab_size, dataset.in_features), (11, 0))
    self.assertEqual(dataset.unit, 'tokens')
    self.assertEqual(dataset.train_batch(1)['inputs'].dtype, np.int32)
    series = data.from_arrays(tokens / 2, LABELS, batch_size=8)
    self.assertEqual(series.train_batch(1)['inputs'].shape, (8, T, 1))
    self.assertEqual((series.vocab_size, series.in_features), (0, 1))

  @parameterized.parameters(
      (np.uint8, np.uint8), (np.int16, np.int16), (np.int32, np.float32),
      (bool, np.float32),
  )
  def test_vectors_of_small_integers_stay_as_they_are(self, given, expected):
    x = rng().integers(100, size=(N, T, D)).astype(given)
    dataset = data.from_arrays(
        list(x), LABELS, lengths=np.full(N, T - 1), batch_size=8
    )
    found = dataset.train_batch(1)['inputs']
    self.assertEqual(found.dtype, expected)
    self.assertFalse(found[:, -1].any())
    self.assertEqual(dataset.in_features, D)
    mixed = data.from_arrays(
        dict(train=x, validation=x / 2, test=x),
        dict.fromkeys(('train', 'validation', 'test'), LABELS), batch_size=8,
    )
    self.assertEqual(mixed.train_batch(1)['inputs'].dtype, np.float32)

  @parameterized.parameters((1, np.uint8), (255, np.float32))
  def test_images(self, white, dtype):
    x, lengths = images(), 1 + np.arange(N) % T
    x = x if dtype == np.uint8 else x / white
    pieces = [u[:length] for u, length in zip(x, lengths, strict=True)]
    dataset = data.from_arrays(pieces, LABELS, batch_size=8)
    self.assertEqual(
        (dataset.image_shape, dataset.in_features, dataset.vocab_size),
        ((2, 3, 1), 0, 0),
    )
    self.assertEqual(dataset.unit, 'time steps')
    found = everything(dataset, 'test')
    first = found['inputs'][:, 0, 0, 0, 0]
    order, exists = np.rint(first * white).astype(int), found['input_mask']
    self.assertEqual(found['inputs'].dtype, dtype)
    np.testing.assert_array_equal(exists.sum(1), lengths[order])
    np.testing.assert_array_equal(
        found['inputs'][exists], x[order][exists].astype(dtype)
    )
    self.assertFalse(found['inputs'][~exists].any())
    np.testing.assert_array_equal(found['targets'], LABELS[order])

  def test_later_pixels_are_a_forecast(self):
    x = images()
    y = x[:, 1:].reshape(N, T - 1, -1).astype(float)
    found = lambda y: data.from_arrays(x[:, :-1], y, batch_size=8).forecast
    self.assertTrue(found(y[..., 2:3]))
    self.assertFalse(found(y[..., 2:3] + 1))

  def test_strings_are_labels(self):
    y = np.array(['no', 'yes', 'maybe'])[LABELS]
    dataset = data.from_arrays(vectors(), y, batch_size=8)
    self.assertEqual(dataset.class_names, ('maybe', 'no', 'yes'))
    found = everything(dataset, 'validation')
    order = found['inputs'][:, 0, 0].astype(int)
    self.assertEqual(
        [dataset.class_names[i] for i in found['targets']], y[order].tolist()
    )
    names = ('yes', 'no', 'maybe', 'never')
    dataset = data.from_arrays(vectors(), y, batch_size=8, class_names=names)
    self.assertEqual((dataset.class_names, dataset.num_classes), (names, 4))


  def test_columns_of_tables(self):
    names = np.array(['yes', 'no', 'maybe'])[LABELS]
    as_array = data.from_arrays(vectors(), names, batch_size=8)
    as_objects = data.from_arrays(vectors(), names.astype(object), batch_size=8)
    self.assertEqual(as_array.source, as_objects.source)

  def test_bfloat16(self):
    x = jnp.asarray(vectors(), jnp.bfloat16)
    dataset = data.from_arrays(x, LABELS, batch_size=8)
    rounded = data.from_arrays(x.astype(np.float32), LABELS, batch_size=8)
    self.assertEqual(dataset.source, rounded.source)


class SplitTest(parameterized.TestCase):

  def test_splits_are_disjoint_complete_and_always_the_same(self):
    y = rng().normal(size=N)
    one = data.from_arrays(vectors(), y, batch_size=8, seed=1)
    other = data.from_arrays(vectors(), y, batch_size=4, seed=2)
    held = numbers(one, 'validation') + numbers(one, 'test')
    self.assertLen(held, 12)
    self.assertEqual(
        held, numbers(other, 'validation') + numbers(other, 'test')
    )
    trained = set(numbers(one, 'train'))
    self.assertEqual(trained | set(held), set(range(N)))
    self.assertNoCommonElements(trained, held)
    self.assertEqual(
        one.source['examples'], dict(train=48, validation=6, test=6)
    )
    self.assertEqual(one.source, other.source)
    self.assertNotEqual(
        one.source, data.from_arrays(vectors(), y + 1, batch_size=8).source
    )

  @parameterized.parameters(50, 97, 1000)
  def test_labels_are_stratified(self, n):
    y = rng().choice(4, size=n, p=[0.1, 0.2, 0.3, 0.4])
    shares = dict(train=0.6, validation=0.25, test=0.15)
    parts = examples.split(examples.Examples(np.arange(n), y), shares)
    index = np.concatenate([part.inputs for part in parts.values()])
    np.testing.assert_array_equal(np.sort(index), np.arange(n))
    for name, part in parts.items():
      np.testing.assert_array_equal(y[part.inputs], part.targets)
      np.testing.assert_array_less(0, np.diff(part.inputs))
      self.assertAlmostEqual(len(part), shares[name] * n, delta=1)
      np.testing.assert_allclose(
          np.bincount(part.targets, minlength=4),
          shares[name] * np.bincount(y), atol=2,
      )

  def test_an_epoch_has_every_example_once(self):
    dataset = data.from_arrays(
        vectors(), LABELS, batch_size=8, splits=(0.8, 0.1, 0.1)
    )
    epochs = [
        [
            int(i) for step in range(first, first + 6)
            for i in dataset.train_batch(step)['inputs'][:, 0, 0]
        ]
        for first in (1, 7)
    ]
    self.assertEqual(sorted(epochs[0]), sorted(epochs[1]))
    self.assertLen(set(epochs[0]), 48)
    self.assertNotEqual(*epochs)

  def test_ready_splits(self):
    x, y = vectors(), LABELS
    parts = dict(
        train=slice(0, 40), validation=slice(40, 45), test=slice(45, 60)
    )
    dataset = data.from_arrays(
        {name: x[part] for name, part in parts.items()},
        {name: y[part] for name, part in parts.items()},
        batch_size=8,
    )
    self.assertEqual(numbers(dataset, 'validation'), list(range(40, 45)))
    self.assertEqual(numbers(dataset, 'test'), list(range(45, 60)))
    self.assertEqual(sorted(numbers(dataset, 'train')), list(range(40)))

  def test_a_missing_split_is_taken_from_the_train_split(self):
    x, y = vectors(), LABELS
    dataset = data.from_arrays(
        dict(train=x[:40], test=x[40:]), dict(train=y[:40], test=y[40:]),
        batch_size=5, splits=(0.6, 0.2, 0.2),
    )
    self.assertEqual(
        dataset.source['examples'], dict(train=30, validation=10, test=20)
    )
    self.assertEqual(numbers(dataset, 'test'), list(range(40, 60)))
    self.assertEqual(
        sorted(numbers(dataset, 'train') + numbers(dataset, 'validation')),
        list(range(40)),
    )

  def test_more_splits_than_three(self):
    x, y = vectors(20), LABELS[:20]
    splits = ('train', 'noisy', 'test', 'validation')
    dataset = data.from_arrays(
        dict.fromkeys(splits, x), dict.fromkeys(splits, y), batch_size=8
    )
    self.assertEqual(dataset.eval_splits, ('validation', 'test', 'noisy'))


class LengthsTest(parameterized.TestCase):

  def lengths(self):
    lengths = rng().integers(1, T + 1, N)
    lengths[0] = T
    return lengths

  def test_a_list_is_the_same_as_lengths(self):
    x, lengths = vectors(), self.lengths()
    pieces = [row[:length] for row, length in zip(x, lengths, strict=True)]
    for row, length in zip(x, lengths, strict=True):
      row[length:] = np.nan  # What does not exist may hold anything.
    one = data.from_arrays(pieces, LABELS, batch_size=8)
    other = data.from_arrays(x, LABELS, lengths=lengths, batch_size=8)
    self.assertEqual(one.source, other.source)
    for split in ('train', 'validation', 'test'):
      found, again = everything(one, split), everything(other, split)
      for key in ('inputs', 'targets', 'input_mask'):
        np.testing.assert_array_equal(found[key], again[key])
      order = found['inputs'][:, 0, 0].astype(int)
      np.testing.assert_array_equal(
          found['input_mask'].sum(1), lengths[order]
      )
      np.testing.assert_array_equal(found['inputs'][~found['input_mask']], 0)
    self.assertNotIn('mask', one.train_batch(1))
    self.assertEqual(one.eval_batches('test')[0]['mask'].shape, (8,))

  @parameterized.named_parameters(
      ('labels', rng().integers(4, size=(N, T))),
      ('numbers', rng().normal(size=(N, T, 2))),
  )
  def test_targets_of_steps_that_do_not_exist_do_not_count(self, y):
    x, lengths = vectors(), self.lengths()
    pieces = lambda u: [u[i, :length] for i, length in enumerate(lengths)]
    one = data.from_arrays(pieces(x), pieces(y), batch_size=8)
    y = y.copy()
    for row, length in zip(y, lengths, strict=True):
      row[length:] = -1
    other = data.from_arrays(x, y, lengths=lengths, batch_size=8)
    self.assertEqual(one.source, other.source)
    batch = one.train_batch(1)
    np.testing.assert_array_equal(batch['mask'], batch['input_mask'])
    np.testing.assert_array_equal(batch['targets'][~batch['mask']], 0)
    counted = {
        split: sum(int(b['mask'].sum()) for b in one.eval_batches(split))
        for split in one.eval_splits
    }
    self.assertEqual(
        sum(counted.values()) + sum(everything(one, 'train')['mask'].sum(1)),
        lengths.sum(),
    )
    # Rows that fill up the last batch do not count, but steps of them exist.
    last = one.eval_batches('test')[-1]
    self.assertFalse(last['mask'][-1].any())
    self.assertTrue(last['input_mask'][-1].any())

  def test_lengths_of_steps(self):
    x, lengths = vectors(), self.lengths()
    # At step t of row i it is i + t / 8.
    dt = np.arange(N)[:, None] + np.arange(T) / 8
    pieces = lambda u: [u[i, :length] for i, length in enumerate(lengths)]
    one = data.from_arrays(pieces(x), LABELS, dt=pieces(dt), batch_size=8)
    exists = np.arange(T) < lengths[:, None]
    for given in (pieces(dt), np.where(exists, dt, np.nan)):
      other = data.from_arrays(
          x, LABELS, lengths=lengths, dt=given, batch_size=8
      )
      self.assertEqual(one.source, other.source)
    self.assertTrue(one.irregular)
    self.assertEqual(one.train_batch(1)['dt'].dtype, np.float32)
    for split in ('train', 'validation', 'test'):
      found = everything(one, split)
      order = found['inputs'][:, 0, 0].astype(int)
      np.testing.assert_array_equal(
          found['dt'], np.where(exists, dt, 0)[order]
      )
    without = data.from_arrays(x, LABELS, lengths=lengths, batch_size=8)
    self.assertNotEqual(one.source['sha256'], without.source['sha256'])
    self.assertFalse(without.irregular)
    self.assertNotIn('dt', without.train_batch(1))

  def test_equal_lengths_need_no_mask(self):
    dataset = data.from_arrays(
        list(vectors()), LABELS, lengths=np.full(N, T), batch_size=8
    )
    self.assertNotIn('input_mask', dataset.train_batch(1))

  def test_splits_of_different_lengths(self):
    x = vectors()
    dataset = data.from_arrays(
        dict(train=x[:40], validation=x[40:50, :4], test=list(x[50:, :6])),
        dict(train=LABELS[:40], validation=LABELS[40:50], test=LABELS[50:]),
        dt=dict(
            train=np.ones((40, T)), validation=np.ones((10, 4)),
            test=[np.ones(6)] * 10,
        ),
        batch_size=8,
    )
    self.assertEqual(dataset.sequence_length, T)
    for split, length in (('train', T), ('validation', 4), ('test', 6)):
      found = everything(dataset, split)
      self.assertEqual(set(found['input_mask'].sum(1)), {length})
      np.testing.assert_array_equal(found['dt'], found['input_mask'])
      self.assertEqual(found['inputs'].shape[1:], (T, D))


class BaselineTest(absltest.TestCase):

  def test_labels(self):
    y = np.repeat([0, 1], [45, 15])
    found = data.from_arrays(vectors(), y, batch_size=8).baselines()
    self.assertAlmostEqual(found['majority_accuracy'], 0.75, delta=0.1)

  def test_numbers(self):
    y = np.stack([np.zeros(N), np.arange(N) % 2 * 2.0], 1)
    found = data.from_arrays(vectors(), y, batch_size=8).baselines()
    self.assertAlmostEqual(found['mean_mse'], 0.5, delta=0.05)

  def test_only_steps_that_exist_count(self):
    y = np.zeros((N, T, 1))
    y[:, 3:] = 100
    dataset = data.from_arrays(
        vectors(), y, lengths=np.full(N, 3), batch_size=8
    )
    self.assertEqual(dataset.baselines(), {'mean_mse': 0})

  def test_nearest_centroid(self):
    x = np.array([[0.0], [0.2], [1.0], [1.2], [5.0], [5.2]])
    part = examples.Examples(x, np.array([0, 0, 1, 1, 4, 4]))
    test = examples.Examples(
        np.array([[0.5], [0.7], [4.0], [3.0]]), np.array([0, 1, 4, 4])
    )
    found = examples.label_baselines(
        dict(train=part, test=test), vectors=lambda x: x
    )
    self.assertEqual(found['centroid_accuracy'], 0.75)


class BadInputTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('objects', np.array([{}] * N), LABELS, 'an array of numbers, got an ob'),
      ('text', np.full((N, T), 'a'), LABELS, 'got <U1 of shape'),
      ('complex', vectors() * 1j, LABELS, 'got complex128'),
      ('one_axis', np.zeros(N), LABELS, r'vectors \[N, T, D\], .* \[60\]'),
      (
          'no_channels', np.zeros((N, 2, 2, 2)), LABELS,
          r'images \[N, T, H, W, C\], .* \[60, 2, 2, 2\]',
      ),
      ('six_axes', np.zeros((N, 2, 2, 2, 1, 1)), LABELS, r'\[60, 2, 2, 2, 1'),
      ('no_pixels', np.zeros((N, 2, 0, 2, 1)), LABELS, r'\[60, 2, 0, 2, 1\]'),
      (
          'nan_in_an_image', np.full((N, T, 2, 2, 1), np.nan), LABELS,
          r'finite in float32, got nan at index \[0, 0, 0, 0, 0\]',
      ),
      (
          'sizes_of_images',
          dict(train=np.zeros((N, T, 2, 3, 1)), test=np.zeros((N, T, 3, 2, 1))),
          dict(train=LABELS, test=LABELS), r'one size, .* \[60, 7, 3, 2, 1\]',
      ),
      (
          'bytes_and_floats', dict(train=images(), test=images() / 255),
          dict(train=LABELS, test=LABELS),
          r'all uint8 or none, got uint8 .* float32 ',
      ),
      (
          'vectors_and_images', dict(train=vectors(), test=images()),
          dict(train=LABELS, test=LABELS), 'vectors of one size, or images',
      ),
      ('no_steps', np.zeros((N, 0, 2)), LABELS, r'shape \[60, 0, 2\]'),
      ('nothing', [], [], r'shape \[0\]'),
      (
          'nan', np.where(vectors() == 4, np.nan, vectors()), LABELS,
          r'x of train must be finite .* nan at index \[4, 0, 0\]',
      ),
      ('too_large', vectors() * 1e300, LABELS, 'finite in float32, got -?inf'),
      ('negative_tokens', np.full((N, T), -1), LABELS, 'got -1 at index'),
      ('mixed_list', [np.zeros((2, 2)), np.zeros((3, 1))], [0, 1], 'a list'),
      ('empty_piece', [np.zeros((0, 2)), np.zeros((3, 2))], [0, 1], 'one step'),
      (
          'ragged_rows', [[[1.0], [2.0, 3.0]], [[1.0]]], [0, 1],
          'array of numbers',
      ),
      ('rows_of_y', vectors(), LABELS[1:], r'60 rows of x, got .* \[59\]'),
      ('scalar_y', vectors(), 1, r'60 rows of x, got the shape \[\]'),
      ('steps_of_y', vectors(), np.zeros((N, T + 1), int), r'\[N, T\] = \[60'),
      ('wide_y', vectors(), np.zeros((N, 2, 2)), 'for regression, with'),
      ('negative_y', vectors(), LABELS - 1, 'from 0 upwards, got -1 to 1'),
      ('nan_y', vectors(), np.full(N, np.nan), 'y of train must be finite'),
      ('none_y', vectors(), [None] * N, 'y of train must be an array of num'),
      ('few', vectors(4), LABELS[:4], 'too few examples: none is left for'),
      ('y_splits', vectors(), dict(train=LABELS), 'y of train must be an arr'),
      ('x_splits', dict(train=vectors()), LABELS, 'y must be a dictionary'),
      ('no_train', dict(test=vectors()), dict(test=LABELS), 'split "train"'),
      (
          'other_width', dict(train=vectors(), test=vectors()[..., :1]),
          dict(train=LABELS, test=LABELS), r'got float32 \[60, 7, 3\], float32',
      ),
      (
          'kinds_of_y', dict(train=vectors(), test=vectors()),
          dict(train=LABELS, test=LABELS * 0.5), 'one kind of dtype',
      ),
      (
          'widths_of_y', dict(train=vectors(), test=vectors()),
          dict(train=np.zeros((N, 2)), test=np.zeros((N, 3))), 'as wide in all',
      ),
  )
  def test_arrays(self, x, y, message):
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      data.from_arrays(x, y, batch_size=8)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.named_parameters(
      ('task', dict(task='classify'), 'Did you mean "classification"'),
      ('two_shares', dict(splits=(0.5, 0.5)), 'three positive shares'),
      ('four_shares', dict(splits=(0.7, 0.1, 0.1, 0.1)), 'three positive'),
      ('no_share', dict(splits=(0.9, 0.1, 0.0)), 'three positive shares'),
      ('large_shares', dict(splits=(8, 1, 1)), 'add up to 1'),
      ('names', dict(class_names=('a', 'b')), 'up to 2, but there are only 2'),
      ('equal_names', dict(class_names=('a', 'b', 'a')), 'different names'),
      ('no_splits', dict(splits=None), 'three positive shares .* got None'),
      ('nan_split', dict(splits=(np.nan, 0.5, 0.5)), 'three positive'),
      (
          'names_of_numbers', dict(class_names=('a',), task='regression'),
          'for classification only',
      ),
      ('few_lengths', dict(lengths=[3]), '60 integers, one for each row of x'),
      ('float_lengths', dict(lengths=np.full(N, 2.0)), 'got float64 of shape'),
      ('length_0', dict(lengths=np.arange(N) % 4), 'from 1 to 7.* got 0 to 3'),
      ('long', dict(lengths=np.full(N, T + 1)), 'from 1 to 7.* got 8 to 8'),
      ('negative_dt', dict(dt=np.full((N, T), -0.5)), 'negative, got -0.5'),
      ('nan_dt', dict(dt=np.full((N, T), np.nan)), 'dt of train must be finit'),
      ('dt_of_rows', dict(dt=np.ones(N)), r'\[60, 7\], got float64 .* \[60\]'),
      ('long_dt', dict(dt=np.ones((N, T + 1))), r'\[60, 7\], got .* \[60, 8\]'),
      ('wide_dt', dict(dt=np.ones((N, T, 1))), r'7\], got .* \[60, 7, 1\]'),
      ('dt_of_splits', dict(dt=dict(test=np.ones((N, T)))), 'array of numbers'),
      ('text_dt', dict(dt=np.full((N, T), 'a')), r'numbers \[N, T\] .* <U1'),
      (
          'short_dt', dict(dt=[np.ones(1 + i % T) for i in range(N)]),
          'dt of train is a list: .* as long as those of x',
      ),
      ('batch', dict(batch_size=0), 'batch_size must be a positive integer'),
      ('processes', dict(process_count=3), 'batch_size=8 for 3 processes'),
      ('seed', dict(seed=-1), 'seed must be an integer'),
  )
  def test_arguments(self, arguments, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      data.from_arrays(
          vectors(), LABELS, **(dict(batch_size=8) | arguments)
      )

  def test_labels_and_masks_that_make_no_sense(self):
    for x, y, message in (
        (vectors(), np.zeros(N, int), 'the label 0 only'),
        (vectors(), LABELS * 10**9, 'up to 2000000000, but only 3 different'),
        (np.ma.masked_array(vectors()), LABELS, 'x of train is a masked array'),
        (
            dict(train=vectors(), val=vectors()),
            dict(train=LABELS, val=LABELS), 'is called "validation"',
        ),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        data.from_arrays(x, y, batch_size=8)

  def test_lists(self):
    pieces = [np.zeros((1 + i % 3, 2)) for i in range(N)]
    for arguments, y, message in (
        (dict(lengths=np.full(N, 1)), LABELS, 'needs no lengths beside it'),
        ({}, [np.zeros((1 + i % 2, 1)) for i in range(N)], 'as long as those'),
        (dict(task='classification'), LABELS + 0.5, 'whole numbers'),
        (
            dict(task='regression'), np.full(N, 'a'),
            'must be numbers .* for regression',
        ),
        (dict(class_names=('b',)), np.full(N, 'a'), "label 'a', which is not"),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        data.from_arrays(pieces, y, batch_size=8, **arguments)


if __name__ == '__main__':
  absltest.main()
