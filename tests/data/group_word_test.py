"""Word problems of groups against permutations that are applied one by one."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.synthetic import group_word

ORDERS = dict(
    Z1=1, Z2=2, Z60=60, S3=6, S5=120, A4=12, A5=60, A4_x_Z5=60, S3_x_Z10=60
)


def load(batch_size=64, seed=0, **fields):
  config = {'name': 'group_word', 'group': 'S3', 'sequence_length': 9}
  return data.load(config | fields, batch_size=batch_size, seed=seed)


def sign(permutation):
  """The determinant of the permutation's matrix."""
  return round(np.linalg.det(np.eye(len(permutation))[list(permutation)]))


class GroupWordTest(parameterized.TestCase):

  @parameterized.parameters(*ORDERS.items())
  def test_the_table_composes_permutations(self, group, order):
    elements = group_word.permutations(group)
    self.assertLen(set(elements), order)
    self.assertEqual(elements, sorted(elements))
    points = np.arange(len(elements[0]))
    self.assertEqual(elements[0], tuple(points))
    table = group_word.table(group)
    for (i, a), (j, b) in itertools.product(enumerate(elements), repeat=2):
      # Move the points by `a`, then by `b`.
      moved = [b[a[point]] for point in points]
      self.assertEqual(elements[table[i, j]], tuple(moved))

  def test_the_groups_are_those_of_the_names(self):
    self.assertEqual(
        group_word.permutations('S4'), [*itertools.permutations(range(4))]
    )
    self.assertEqual(
        group_word.permutations('A5'),
        [p for p in itertools.permutations(range(5)) if sign(p) == 1],
    )
    k = np.arange(60)
    np.testing.assert_array_equal(
        group_word.table('Z60'), (k[:, None] + k) % 60
    )
    commute = {
        group: (group_word.table(group) == group_word.table(group).T).all()
        for group in ORDERS
    }
    self.assertEqual(
        {group for group, does in commute.items() if does},
        {'Z1', 'Z2', 'Z60'},
    )

  @parameterized.parameters('Z2', 'S3', 'A5', 'A4_x_Z5')
  def test_targets_are_running_products(self, group):
    dataset = load(group=group, test_lengths=(4, 20), test_examples=3)
    elements = group_word.permutations(group)
    self.assertEqual(dataset.vocab_size, len(elements))
    self.assertEqual(dataset.baselines(), {'chance_accuracy': 1/len(elements)})
    train = dataset.train_batch(1)
    self.assertEqual(set(train), {'inputs', 'targets'})
    counts = np.bincount(train['inputs'].ravel(), minlength=len(elements))
    mean = counts.sum() / len(elements)
    np.testing.assert_allclose(counts, mean, atol=5 * np.sqrt(mean))
    batches = [train] + [
        dataset.eval_batches(split)[0] for split in dataset.eval_splits
    ]
    for batch in batches:
      for inputs, targets in zip(
          batch['inputs'][:3], batch['targets'][:3], strict=True
      ):
        state = elements[0]
        for x, y in zip(inputs, targets, strict=True):
          state = tuple(elements[x][point] for point in state)
          self.assertEqual(elements[y], state)
    if group == 'Z2':
      np.testing.assert_array_equal(
          train['targets'], train['inputs'].cumsum(1) % 2
      )

  def test_only_steps_beyond_the_training_length_count(self):
    dataset = load(test_lengths=(4, 20), test_examples=3)
    for split, steps in (('test', 9), ('test_4', 4), ('test_20', 11)):
      mask = dataset.eval_batches(split)[0]['mask']
      self.assertEqual(mask[:3, -steps:].sum(), 3 * steps)
      self.assertEqual(mask[:3].sum(), 3 * steps)

  @parameterized.parameters(
      ('Q8', 'must be Z<n>, S<n> or A<n>'),
      ('Z0', 'must be Z<n>, S<n> or A<n>'),
      ('Z2_x_', 'must be Z<n>, S<n> or A<n>'),
      ('', 'must be Z<n>, S<n> or A<n>'),
      ('Z121', "at most 120 elements, got 'Z121'"),
      ('S6', 'at most 120 elements'),
      ('A9999', 'at most 120 elements'),
      ('S5_x_Z2', 'at most 120 elements'),
  )
  def test_bad_groups(self, group, message):
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      load(group=group)
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
