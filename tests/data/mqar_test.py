"""The laws of the published task."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors


def load(batch_size=64, seed=0, **fields):
  config = {
      'name': 'mqar', 'sequence_length': 20, 'num_pairs': 3, 'vocab_size': 16,
  }
  return data.load(config | fields, batch_size=batch_size, seed=seed)


class MQARTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_laws(self, random_non_queries):
    dataset = load(random_non_queries=random_non_queries)
    self.assertEqual(dataset.sequence_length, 20)
    self.assertEqual(dataset.vocab_size, 16)
    self.assertIsNone(dataset.vocabulary)
    all_keys, all_values, others = [], [], []
    for step in range(1, 31):
      batch = dataset.train_batch(step)
      for inputs, targets, mask in zip(
          batch['inputs'], batch['targets'], batch['mask'], strict=True
      ):
        keys, values = inputs[0:6:2].tolist(), inputs[1:6:2].tolist()
        self.assertLen(set(keys + values), 6)
        (places,) = np.nonzero(mask)
        self.assertLen(places, 3)
        self.assertTrue((places >= 6).all() and not (places % 2).any())
        self.assertSameElements(inputs[places], keys)
        for place in places:
          self.assertEqual(
              targets[place], values[keys.index(inputs[place])]
          )
        np.testing.assert_array_equal(targets[~mask], 0)
        all_keys += keys
        all_values += values
        mask[:6] = True
        others.extend(inputs[~mask])
    # Uniform, within five standard deviations.
    ids = [(all_keys, range(1, 8)), (all_values, range(8, 16))]
    ids.append((others, range(16) if random_non_queries else [0]))
    for got, expected in ids:
      names, counts = np.unique(got, return_counts=True)
      np.testing.assert_array_equal(names, expected)
      mean = len(got) / len(expected)
      np.testing.assert_allclose(counts, mean, atol=5 * np.sqrt(mean))

  @parameterized.parameters((1.0, np.ones(7)), (-1.0, np.arange(1, 8.0) ** -2))
  def test_gaps_follow_a_power_law(self, power, weights):
    dataset = load(num_pairs=1, sequence_length=16, power=power)
    gaps = np.concatenate([
        (np.nonzero(dataset.train_batch(step)['mask'])[1] - 2) // 2
        for step in range(1, 41)
    ])
    want = len(gaps) * np.asarray(weights) / np.sum(weights)
    counts = np.bincount(gaps, minlength=7)
    np.testing.assert_array_less(np.abs(counts - want), 5 * np.sqrt(want))

  def test_examples_differ_between_numbers_splits_and_seeds(self):
    dataset, other = load(vocab_size=1000), load(vocab_size=1000, seed=1)
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
    again = load(vocab_size=1000).train_batch(2)
    for name, values in batches[1].items():
      np.testing.assert_array_equal(again[name], values)

  def test_evaluation_size(self):
    dataset = load(eval_examples=100)
    self.assertEqual(dataset.eval_splits, ('validation', 'test'))
    counted = [batch['mask'].sum() for batch in dataset.eval_batches('test')]
    self.assertEqual(counted, [64 * 3, 36 * 3])
    self.assertEqual(
        dataset.baselines(),
        {'chance_accuracy': 1 / 8, 'any_value_accuracy': 1 / 3},
    )

  def test_the_papers_sizes_are_the_defaults(self):
    dataset = data.load({'name': 'mqar'}, batch_size=2, seed=0)
    self.assertEqual(dataset.sequence_length, 64)
    self.assertEqual(dataset.vocab_size, 8192)
    self.assertEqual(dataset.train_batch(1)['mask'].sum(), 2 * 4)
    self.assertLen(dataset.eval_batches('test'), 512)

  def test_bad_fields(self):
    for fields, message in (
        ({'num_pairs': 6}, 'num_pairs=6 pairs .* do not fit'),
        ({'vocab_size': 7}, 'at least 8 are needed'),
        ({'eval_examples': 0}, 'data.eval_examples must be at least 1'),
        ({'power': float('nan')}, r'data.power must be in \[-10, 10\]'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        load(**fields)
    load(vocab_size=8, num_pairs=3, sequence_length=12).train_batch(1)


if __name__ == '__main__':
  absltest.main()
