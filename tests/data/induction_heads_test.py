"""The laws of induction heads."""

from absl.testing import absltest
import numpy as np
from rnnzoo import data
from rnnzoo import errors


def load(**fields):
  config = dict(name='induction_heads', sequence_length=12, vocab_size=5)
  return data.load(config | fields, batch_size=64, seed=0)


class InductionHeadsTest(absltest.TestCase):

  def test_laws(self):
    dataset = load(test_lengths=(4, 50), test_examples=64)
    self.assertEqual(dataset.baselines(), dict(chance_accuracy=1 / 4))
    places, tokens = [], []
    batches = [dataset.train_batch(step) for step in range(1, 41)]
    batches += [
        dataset.eval_batches(split)[0] for split in ('test_4', 'test_50')
    ]
    for batch in batches:
      for inputs, targets, mask in zip(
          batch['inputs'], batch['targets'], batch['mask'], strict=True
      ):
        (first, last) = np.nonzero(inputs == 4)[0]  # Two triggers.
        self.assertEqual(last, len(inputs) - 1)
        np.testing.assert_array_equal(np.nonzero(mask)[0], [last])
        self.assertEqual(targets[last], inputs[first + 1])
        self.assertBetween(first, 0, len(inputs) - 4)
        if len(inputs) == 12:
          places.append(first)
          tokens.extend(inputs[inputs != 4])
    # Uniform, within five standard deviations.
    for values, expected in ((places, range(9)), (tokens, range(4))):
      ids, counts = np.unique(values, return_counts=True)
      np.testing.assert_array_equal(ids, expected)
      mean = len(values) / len(expected)
      np.testing.assert_allclose(counts, mean, atol=5 * np.sqrt(mean))

  def test_the_longest_split_of_the_paper_has_batches_of_one_row(self):
    dataset = data.load(
        dict(name='induction_heads', test_lengths=(2**20,), test_examples=2),
        batch_size=8, seed=0,
    )
    batches = dataset.eval_batches('test_1048576')
    self.assertLen(batches, 2)
    self.assertEqual(batches[0]['inputs'].shape, (1, 2**20))
    self.assertEqual(dataset.sequence_length, 256)
    self.assertEqual(dataset.vocab_size, 16)

  def test_bad_lengths(self):
    for fields, message in (
        (dict(sequence_length=3), 'data.sequence_length must be at least 4'),
        (dict(test_lengths=(8, 3)), 'data.test_lengths .* least 4 .* got 3'),
        (dict(vocab_size=1), 'data.vocab_size must be at least 2'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        load(**fields)


if __name__ == '__main__':
  absltest.main()
