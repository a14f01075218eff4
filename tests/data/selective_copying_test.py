"""The laws of the two published definitions of the task."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors

# Variant, noise, marker, length of the part with data, of the whole.
VARIANTS = (
    ('min_rnn', 'min_rnn', 9, 0, 50, 56),
    ('mamba', 'mamba', 0, 9, 56, 62),
)


def load(batch_size=64, seed=0, **fields):
  config = {
      'name': 'selective_copying', 'sequence_length': 50, 'num_tokens': 6,
      'vocab_size': 10,
  }
  return data.load(config | fields, batch_size=batch_size, seed=seed)


class SelectiveCopyingTest(parameterized.TestCase):

  @parameterized.named_parameters(*VARIANTS)
  def test_laws(self, variant, noise, marker, haystack, total):
    dataset = load(variant=variant)
    self.assertEqual(dataset.sequence_length, total)
    self.assertEqual(dataset.vocab_size, 10)
    self.assertIsNone(dataset.vocabulary)
    places, tokens = [], []
    for step in range(1, 41):
      batch = dataset.train_batch(step)
      for inputs, targets, mask in zip(
          batch['inputs'], batch['targets'], batch['mask'], strict=True
      ):
        np.testing.assert_array_equal(inputs[haystack:], marker)
        (found,) = np.nonzero(inputs[:haystack] != noise)
        self.assertLen(found, 6)
        np.testing.assert_array_equal(targets[-6:], inputs[found])
        np.testing.assert_array_equal(targets[:-6], 0)
        np.testing.assert_array_equal(mask, np.arange(total) >= total - 6)
        places.extend(found)
        tokens.extend(inputs[found])
    # Uniform places and data ids 1 to 8, within five standard deviations.
    for values, expected in ((places, range(haystack)), (tokens, range(1, 9))):
      ids, counts = np.unique(values, return_counts=True)
      np.testing.assert_array_equal(ids, expected)
      mean = len(values) / len(expected)
      np.testing.assert_allclose(counts, mean, atol=5 * np.sqrt(mean))

  def test_examples_differ_between_numbers_splits_and_seeds(self):
    dataset, other = load(), load(seed=1)
    batches = [
        dataset.train_batch(1),
        dataset.train_batch(2),
        dataset.eval_batches('validation')[0],
        dataset.eval_batches('test')[0],
        other.train_batch(1),
        other.eval_batches('test')[0],
    ]
    rows = {row.tobytes() for batch in batches for row in batch['inputs']}
    self.assertLen(rows, 6 * 64)

  def test_evaluation_size(self):
    dataset = load(eval_examples=100)
    self.assertEqual(dataset.eval_splits, ('validation', 'test'))
    counted = [batch['mask'].sum() for batch in dataset.eval_batches('test')]
    self.assertEqual(counted, [64 * 6, 36 * 6])
    self.assertAlmostEqual(dataset.baselines()['chance_accuracy'], 1 / 8)

  def test_the_papers_sizes_are_the_defaults(self):
    dataset = data.load({'name': 'selective_copying'}, batch_size=2, seed=0)
    self.assertEqual(dataset.sequence_length, 4096 + 16)
    self.assertEqual(dataset.vocab_size, 16)
    self.assertEqual(dataset.train_batch(1)['mask'].sum(), 2 * 16)
    self.assertLen(dataset.eval_batches('test'), 512)

  def test_bad_fields(self):
    for fields, message in (
        ({'vocab_size': 2}, 'at least 3'),
        ({'num_tokens': 51}, 'num_tokens=51 data tokens do not fit'),
        ({'variant': 'minrnn'}, 'Did you mean "min_rnn"'),
        ({'eval_examples': 0}, 'data.eval_examples must be at least 1'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        load(**fields)


if __name__ == '__main__':
  absltest.main()
