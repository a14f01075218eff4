"""The laws of the copying task."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors


def load(**fields):
  return data.load(dict(name='copying') | fields, batch_size=16, seed=0)


class CopyingTest(parameterized.TestCase):

  @parameterized.parameters((3, 2, 0), (4, 5, 6))
  def test_laws(self, length, bits, pause):
    dataset = load(
        pattern_length=length, bits=bits, pause=pause, test_lengths=(9,)
    )
    self.assertEqual((dataset.in_features, dataset.num_classes),
                     (bits + 1, 2**bits))
    self.assertEqual(dataset.baselines(), dict(chance_accuracy=1 / 2**bits))
    seen = set()
    for steps, batch in (
        (length, dataset.train_batch(1)),
        (9, dataset.eval_batches('test_9')[0]),
    ):
      self.assertEqual(
          batch['inputs'].shape, (16, 2 * steps + pause + 1, bits + 1)
      )
      for inputs, targets, mask in zip(
          batch['inputs'], batch['targets'], batch['mask'], strict=True
      ):
        pattern, rest = inputs[:steps], inputs[steps:]
        self.assertEqual(set(pattern[:, :bits].ravel()) - {0, 1}, set())
        np.testing.assert_array_equal(pattern[:, bits], 0)
        # The only other input is the signal, after the pause.
        self.assertEqual(rest.sum(), 1)
        self.assertEqual(rest[pause, bits], 1)
        np.testing.assert_array_equal(
            mask, [False] * (steps + pause + 1) + [True] * steps
        )
        for step, target in zip(pattern, targets[mask], strict=True):
          digits = ''.join(str(int(bit)) for bit in step[:bits][::-1])
          self.assertEqual(int(digits, 2), target)
          seen.add(target)
    if bits == 2:
      self.assertLen(seen, 4)

  def test_the_sizes_by_default(self):
    dataset = load()
    self.assertEqual(
        (dataset.sequence_length, dataset.in_features, dataset.num_classes),
        (48, 8, 128),
    )

  def test_bad_fields(self):
    with self.assertRaisesRegex(
        errors.UserValueError, 'data.bits must be at most 12, got 13'
    ):
      load(bits=13)


if __name__ == '__main__':
  absltest.main()
