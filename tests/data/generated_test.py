"""Splits of other lengths, in what generated data sets share."""

from unittest import mock

from absl.testing import absltest
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data import pipeline


def load(batch_size=8, seed=0, **fields):
  config = dict(
      name='group_word', group='A5', sequence_length=16, eval_examples=20,
      test_lengths=(16, 24, 48), test_examples=12,
  )
  return data.load(config | fields, batch_size=batch_size, seed=seed)


class GeneratedTest(absltest.TestCase):

  def test_splits_have_their_own_lengths_and_sizes(self):
    dataset = load()
    self.assertEqual(
        dataset.split_lengths, dict(test_16=16, test_24=24, test_48=48)
    )
    self.assertEqual(
        dataset.eval_splits,
        ('validation', 'test', 'test_16', 'test_24', 'test_48'),
    )
    for split in dataset.eval_splits:
      length = dataset.split_lengths.get(split, 16)
      batches = list(dataset.eval_batches(split))
      shapes = {batch['inputs'].shape for batch in batches}
      self.assertEqual(shapes, {(8, length)})
      rows = sum(int(batch['mask'].any(1).sum()) for batch in batches)
      self.assertEqual(rows, 12 if split in dataset.split_lengths else 20)

  def test_no_two_splits_share_examples(self):
    """Nor do numbers and seeds, where all rows are cut to one length."""
    one, other = load(), load(seed=1)
    batches = [one.train_batch(1), one.train_batch(2), other.train_batch(1)]
    batches += [
        dataset.eval_batches(split)[0]
        for dataset in (one, other) for split in dataset.eval_splits
    ]
    rows = {row[:16].tobytes() for batch in batches for row in batch['inputs']}
    self.assertLen(rows, 8 * len(batches))

  def test_an_example_depends_on_seed_split_and_number_alone(self):
    rows = lambda dataset, split: np.concatenate([
        batch['inputs'][batch['mask'].any(1)]
        for batch in dataset.eval_batches(split)
    ])
    # Not on the other lengths, nor on the batches.
    others = load(test_lengths=(48,)), load(batch_size=6)
    for other in others:
      np.testing.assert_array_equal(
          rows(other, 'test_48'), rows(load(), 'test_48')
      )

  def test_long_rows_come_in_small_batches(self):
    with mock.patch.object(pipeline, 'LONG_BATCH_TOKENS', 100):
      dataset = load()
    # Training batches have 128 tokens.
    found = [
        dataset.eval_batches(f'test_{n}')[0]['inputs'].shape
        for n in (16, 24, 48)
    ]
    self.assertEqual(found, [(8, 16), (4, 24), (2, 48)])

  def test_bad_lengths(self):
    for lengths, message in (
        ((0, 3), 'at least 1 in every place'),
        (('a',), 'must be a tuple of integers'),
        (64, 'must be a tuple of integers'),
        ((8, 9, 8), 'no length twice'),
    ):
      with self.assertRaisesRegex(
          errors.UserValueError, f'data.test_lengths .*{message}'
      ):
        load(test_lengths=lengths)


if __name__ == '__main__':
  absltest.main()
