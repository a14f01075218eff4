"""Batches of rows of like lengths: `data.from_arrays(..., buckets=4)`."""

import doctest

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data import examples

N, T, ROWS = 200, 40, 8
LENGTHS = np.random.default_rng(0).integers(1, T + 1, N)
# Row i holds the number i alone, as often as it is long.
TOKENS = [np.full(length, i) for i, length in enumerate(LENGTHS)]
LABELS = np.arange(N) % 3


def load(count=N, buckets=4, index=0, of=1, seed=0, **arrays):
  # All splits are the whole set, so that the number of an example is known.
  given = dict(x=TOKENS, y=LABELS) | arrays
  given = {
      name: dict.fromkeys(('train', 'validation', 'test'), value[:count])
      for name, value in given.items()
  }
  return data.from_arrays(
      **given, batch_size=ROWS, buckets=buckets, seed=seed,
      process_index=index, process_count=of,
  )


def numbers(batch):
  """Returns the examples of a batch, whose rows must be what they should."""
  found = batch['inputs'][:, 0]
  exists = np.arange(batch['inputs'].shape[1]) < LENGTHS[found, None]
  counts = batch.get('mask', np.full(len(found), True))
  np.testing.assert_array_equal(batch['input_mask'][counts], exists[counts])
  np.testing.assert_array_equal(
      batch['inputs'][counts], (exists * found[:, None])[counts]
  )
  np.testing.assert_array_equal(batch['targets'], found % 3)
  return found[counts].tolist()


class BucketsTest(parameterized.TestCase):

  def assert_same(self, a, b):
    self.assertEqual(a.keys(), b.keys())
    for key in a:
      self.assertEqual(a[key].dtype, b[key].dtype)
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)

  def test_docstrings(self):
    self.assertEqual(doctest.testmod(examples).failed, 0)

  def test_equally_many_rows_belong_to_each_length(self):
    dataset = load()
    sizes = list(dataset.buckets)
    self.assertLen(sizes, 4)
    self.assertEqual((sizes[-1], dataset.sequence_length), (T, T))
    shares = np.bincount(np.searchsorted(sizes, LENGTHS)) / N
    np.testing.assert_allclose(shares, 0.25, atol=0.05)
    self.assertEqual(
        [b['inputs'].shape for b in dataset.each_shape()],
        [(ROWS, size) for size in sizes],
    )
    form = lambda b: {k: (u.shape, u.dtype) for k, u in b.items()}
    shapes = {str(form(b)) for b in dataset.each_shape()}
    for step in range(1, 26):
      self.assertIn(str(form(dataset.train_batch(step))), shapes)

  @parameterized.parameters(200, 61, 5)
  def test_every_example_once_an_epoch(self, count):
    dataset, seen = load(count), []
    for step in range(1, 4 * count + 1):
      seen += numbers(dataset.train_batch(step))
      # As often as in an order that is shuffled epoch by epoch.
      window = max(1, count // ROWS)
      if step % window == 0:
        times = np.bincount(seen, minlength=count)
        epochs = len(seen) / count
        self.assertEqual(times.min(), np.floor(epochs))
        self.assertEqual(times.max(), np.ceil(epochs))

  def test_there_is_little_padding(self):
    def steps(dataset):
      return sum(
          dataset.train_batch(step)['inputs'].size for step in range(1, 101)
      )

    needed = 100 * ROWS * LENGTHS.mean()
    self.assertEqual(steps(load(buckets=1)), 100 * ROWS * T)
    self.assertBetween(steps(load()) / needed, 1, 1.3)
    self.assertBetween(steps(load(buckets=20)) / needed, 1, 1.15)

  def test_short_and_long_batches_come_in_no_order(self):
    dataset = load()
    sizes = [
        dataset.train_batch(step)['inputs'].shape[1] for step in range(1, 201)
    ]
    self.assertGreater(np.mean(np.diff(sizes) != 0), 0.5)
    self.assertLess(abs(np.mean(sizes[::25]) - np.mean(sizes)), 10)
    other = load(seed=1)
    self.assertNotEqual(sizes, [
        other.train_batch(step)['inputs'].shape[1] for step in range(1, 201)
    ])

  @parameterized.parameters(1, 4)
  def test_evaluation_has_every_example_once(self, buckets):
    for count in (N, 61):
      dataset = load(count, buckets)
      batches = dataset.eval_batches('test')
      self.assertLen(batches, -(-count // ROWS))
      seen = [i for batch in batches for i in numbers(batch)]
      self.assertEqual(sorted(seen), list(range(count)))
      order = dataset.eval_order.get('test', np.arange(count))
      self.assertEqual(seen, order.tolist())
      sizes = {batch['inputs'].shape[1] for batch in batches}
      self.assertContainsSubset(sizes, dataset.buckets or [T])

  def test_all_processes_have_batches_of_one_length(self):
    whole, parts = load(61), [load(61, index=i, of=4) for i in range(4)]
    pairs = [
        (whole.train_batch(step), [p.train_batch(step) for p in parts])
        for step in (1, 2, 3, 50, 10**9)
    ]
    pairs += list(zip(
        whole.eval_batches('test'),
        zip(*(p.eval_batches('test') for p in parts)), strict=True,
    ))
    for expected, found in pairs:
      self.assert_same(
          {k: np.concatenate([b[k] for b in found]) for k in found[0]}, expected
      )
    some = load(61, index=(1, 3), of=4)
    rows = [2, 3, 6, 7]
    for found, expected in (
        (some.train_batch(9), whole.train_batch(9)),
        (some.eval_batches('test')[7], whole.eval_batches('test')[7]),
    ):
      self.assert_same(found, {k: u[rows] for k, u in expected.items()})

  def test_the_step_alone_decides_on_a_batch(self):
    dataset, again = load(seed=3), load(seed=3)
    for start in (1, 13, 10**9):
      iterator = dataset.train_iterator(start)
      for step in range(start, start + 30):
        self.assert_same(next(iterator), again.train_batch(step))
      iterator.close()

  def test_targets_and_lengths_of_steps(self):
    steps = [10 * i + np.arange(length) for i, length in enumerate(LENGTHS)]
    dataset = load(
        y=[row[:, None] / 7 for row in steps], dt=[row / 9 for row in steps]
    )
    batches = [dataset.train_batch(step) for step in range(1, 11)]
    for batch in batches + list(dataset.eval_batches('test')):
      found, exists = batch['inputs'][:, 0], batch['input_mask']
      expected = 10 * found[:, None] + np.arange(exists.shape[1])
      self.assertFalse((batch['mask'] & ~exists).any())
      np.testing.assert_allclose(
          batch['dt'], np.where(exists, expected / 9, 0), rtol=1e-6
      )
      np.testing.assert_allclose(
          batch['targets'][..., 0], np.where(exists, expected / 7, 0), rtol=1e-6
      )

  def test_equal_lengths_make_one_bucket(self):
    dataset = load(x=np.zeros((N, 5), int))
    self.assertEmpty(dataset.buckets)
    self.assertNotIn('input_mask', dataset.train_batch(1))
    few = load(2, buckets=64)
    self.assertEqual(list(few.buckets), sorted(set(LENGTHS[:2].tolist())))

  def test_bad_numbers(self):
    for buckets in (0, 65, 2.5, 'auto'):
      with self.assertRaisesRegex(errors.UserValueError, '^buckets must be'):
        load(buckets=buckets)


if __name__ == '__main__':
  absltest.main()
