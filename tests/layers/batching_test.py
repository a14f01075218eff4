"""Flags from segments, episodes and lengths; packing."""

import time

from absl.testing import parameterized
import jax
import numpy as np
from rnnzoo import layers
from rnnzoo import testing
from tests.layers import modules


class FlagsTest(parameterized.TestCase):

  def test_reset_from_segment_ids(self):
    ids = np.array([[1, 1, 2, 3, 3], [7, 7, 7, 7, 0]])
    change = [[0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    for first, starts in (
        (True, [1, 1]), (False, [0, 0]), (ids[:, 0] != [1, 2], [0, 1])
    ):
      got = layers.reset_from_segment_ids(ids, first=first)
      want = np.array(change, bool)
      want[:, 0] = starts
      np.testing.assert_array_equal(got, want)
    self.assertEqual(layers.reset_from_segment_ids(ids[:, :0]).shape, (2, 0))
    with self.assertRaisesRegex(ValueError, r'float.*\(2, 5\)'):
      layers.reset_from_segment_ids(np.float64(ids))

  @parameterized.parameters(bool, np.float32)
  def test_reset_from_done(self, dtype):
    done = np.array([[0, 1, 0, 1], [0, 0, 0, 0]]).astype(dtype)
    np.testing.assert_array_equal(
        layers.reset_from_done(done), [[0, 0, 1, 0], [0, 0, 0, 0]]
    )
    # Window by window as in one go.
    halves = [
        layers.reset_from_done(done[:, :2]),
        layers.reset_from_done(done[:, 2:], done[:, 1]),
    ]
    np.testing.assert_array_equal(
        np.concatenate(halves, 1), layers.reset_from_done(done)
    )
    with self.assertRaisesRegex(ValueError, r'\(2, 4\) and \(3,\)'):
      layers.reset_from_done(done, np.zeros(3))

  def test_mask_from_lengths(self):
    got = jax.jit(layers.mask_from_lengths, static_argnums=1)(
        np.array([0, 2, 5]), 3
    )
    np.testing.assert_array_equal(got, [[0, 0, 0], [1, 1, 0], [1, 1, 1]])
    self.assertEqual(got.dtype, bool)
    with self.assertRaisesRegex(ValueError, 'lengths'):
      layers.mask_from_lengths(np.array([1.5]), 3)


class PackTest(parameterized.TestCase):

  def test_sequences_go_into_the_first_row_with_room(self):
    sequences = [np.full(n, i + 1) for i, n in enumerate([3, 4, 2, 1, 5])]
    batch = layers.pack(sequences, 5)
    np.testing.assert_array_equal(
        batch['inputs'],
        [[1, 1, 1, 3, 3], [2, 2, 2, 2, 4], [5, 5, 5, 5, 5]],
    )
    np.testing.assert_array_equal(
        batch['reset'], [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    )
    self.assertTrue(batch['mask'].all())

  def test_first_fit_of_many_sequences(self):
    random = np.random.default_rng(0)
    lengths = random.integers(1, 101, 20_000)
    start = time.process_time()
    batch = layers.pack([np.full(n, n) for n in lengths], 100)
    self.assertLess(time.process_time() - start, 5)  # It was minutes.
    np.testing.assert_array_equal(batch['mask'].sum(), lengths.sum())
    some, rows = lengths[:300], []
    for n in some.tolist():
      row = next((row for row in rows if sum(row) + n <= 100), None)
      if row is None:
        rows.append(row := [])
      row.append(n)
    got = layers.pack([np.full(n, n) for n in some], 100)
    np.testing.assert_array_equal(
        got['inputs'],
        [np.pad(np.repeat(row, row), (0, 100 - sum(row))) for row in rows],
    )

  def test_packed_sequences_equal_separate_runs(self):
    sequences = [modules.draw(n, 4) + n for n in (3, 2, 4, 1)]
    batch = layers.pack(sequences, 6)
    self.assertEqual(batch['inputs'].shape, (2, 6, 4))
    self.assertEqual(batch['inputs'].dtype, np.float32)
    layer = layers.Bidirectional(modules.lstm(), modules.lstm())
    _, y = modules.run(
        layer, batch['inputs'], reset=batch['reset'], mask=batch['mask']
    )
    alone = [np.asarray(modules.run(layer, s[None])[1][0]) for s in sequences]
    # Rows: 3 + 2 + 1 and 4.
    want = np.concatenate([alone[0], alone[1], alone[3]])
    testing.assert_close(y[0], want)
    testing.assert_close(y[1, :4], alone[2])

  @parameterized.named_parameters(
      ('none', [], 'must not be empty'),
      ('too_long', [np.arange(5)], r'sequences\[0\].* 1 to 4 tokens, got 5'),
      ('empty', [np.arange(2), np.arange(0)], r'sequences\[1\].*got 0'),
      ('scalar', [np.array(1)], r'sequences\[0\]'),
      ('mixed', [np.arange(2), np.ones(2)], r'sequences\[1\].*int64.*float64'),
  )
  def test_invalid_sequences_raise(self, sequences, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.pack(sequences, 4)
