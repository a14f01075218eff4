"""The laws of the adding problem."""

from absl.testing import absltest
import numpy as np
from rnnzoo import data
from rnnzoo import errors


def load(batch_size=64, seed=0, **fields):
  return data.load(
      {'name': 'adding'} | fields, batch_size=batch_size, seed=seed
  )


class AddingTest(absltest.TestCase):

  def test_laws(self):
    dataset = load(min_length=10, max_length=14)
    self.assertEqual((dataset.task, dataset.in_features), ('regression', 2))
    lengths, places, numbers, targets = [], [], [], []
    for step in range(1, 41):
      batch = dataset.train_batch(step)
      self.assertNotIn('mask', batch)
      for x, exists, y in zip(
          batch['inputs'], batch['input_mask'], batch['targets'], strict=True
      ):
        length = int(exists.sum())
        np.testing.assert_array_equal(exists, np.arange(14) < length)
        np.testing.assert_array_equal(x[length:], 0)
        (marked,) = np.nonzero(x[:, 1])
        self.assertLen(marked, 2)
        np.testing.assert_array_equal(x[marked, 1], 1)
        self.assertTrue(marked[0] < length // 2 <= marked[1] < length)
        np.testing.assert_allclose(y, [x[marked, 0].sum()], rtol=1e-6)
        lengths.append(length)
        targets.append(y[0])
        numbers.extend(x[:length, 0])
        places.extend(marked if length == 10 else ())
    # Uniform lengths, places and numbers, within five standard deviations.
    for values, expected in (
        (lengths, range(10, 15)),
        (places, range(10)),
        (np.floor(np.multiply(numbers, 10)), range(10)),
    ):
      ids, counts = np.unique(values, return_counts=True)
      np.testing.assert_array_equal(ids, expected)
      mean = len(values) / len(expected)
      np.testing.assert_allclose(counts, mean, atol=5 * np.sqrt(mean))
    # Always answering 1, as the baseline does.
    error = np.mean((np.array(targets) - 1) ** 2)
    self.assertAlmostEqual(error, 1 / 6, delta=0.02)
    self.assertEqual(dataset.baselines(), {'always_one_mse': 1 / 6})

  def test_the_lengths_by_default(self):
    dataset = load()
    self.assertEqual(dataset.sequence_length, 100)
    lengths = np.concatenate([
        batch['input_mask'].sum(1) for batch in dataset.eval_batches('test')
    ])
    self.assertEqual((lengths.min(), lengths.max()), (50, 100))
    self.assertLen(lengths, 1024)

  def test_one_length_needs_no_mask(self):
    batch = load(min_length=9, max_length=9).train_batch(1)
    self.assertEqual(batch['inputs'].shape, (64, 9, 2))
    self.assertNotIn('input_mask', batch)

  def test_splits_differ_and_rows_that_fill_up_do_not_count(self):
    dataset = load(eval_examples=100)
    batches = list(dataset.eval_batches('validation'))
    self.assertEqual([int(b['mask'].sum()) for b in batches], [64, 36])
    other = dataset.eval_batches('test')[0]
    rows = {
        row.tobytes()
        for batch in (batches[0], other, dataset.train_batch(1))
        for row in batch['inputs']
    }
    self.assertLen(rows, 3 * 64)

  def test_bad_fields(self):
    for fields, message in (
        (dict(min_length=60, max_length=50), 'data.min_length=60 is larger'),
        (dict(min_length=1), 'data.min_length must be at least 2'),
        (dict(eval_examples=0), 'data.eval_examples must be at least 1'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        load(**fields)
    load(min_length=2, max_length=3).train_batch(1)


if __name__ == '__main__':
  absltest.main()
