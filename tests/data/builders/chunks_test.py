"""Chunks in files: their order, what is made again, and what is not."""

import itertools
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo.data.builders import chunks


class ChunksTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.directory, self.made = place / 'chunks', []

  def square(self, number):
    self.made.append(number)
    return {'square': np.array([number**2])}

  def make(self, numbers, key='squares'):
    found = chunks.make(self.square, numbers, self.directory, key)
    return [int(chunk['square'][0]) for chunk in found]

  def test_finished_chunks_are_kept(self):
    endless = chunks.make(
        self.square, itertools.count(), self.directory, 'squares'
    )
    for number in range(3):
      self.assertEqual(next(endless)['square'].tolist(), [number**2])
    endless.close()
    self.assertEqual(self.make(range(5)), [0, 1, 4, 9, 16])
    self.assertEqual(self.made, [0, 1, 2, 3, 4])
    self.assertLen(list(self.directory.iterdir()), 5)
    self.assertEqual(self.make(range(2), key='other'), [0, 1])
    self.assertEqual(self.made, [0, 1, 2, 3, 4, 0, 1])

  @parameterized.parameters('half', 'empty', 'flipped', 'text')
  def test_a_damaged_file_is_made_again(self, damage):
    self.make(range(3))
    path = self.directory / '000001.npz'
    content = path.read_bytes()
    at = content.index(np.array([1]).tobytes() + b'PK')  # The value itself.
    path.write_bytes({
        'half': content[: len(content) // 2],
        'empty': b'',
        'flipped': content[:at] + b'\x03' + content[at + 1 :],
        'text': b'text',
    }[damage])
    self.assertEqual(self.make(range(3)), [0, 1, 4])
    self.assertEqual(self.made, [0, 1, 2, 1])
    self.assertEqual(path.read_bytes(), content)

  def test_a_failure_leaves_no_file(self):
    def fails(number):
      raise ValueError(f'chunk {number}')

    with self.assertRaisesRegex(ValueError, 'chunk 0'):
      next(chunks.make(fails, range(2), self.directory, ''))
    self.assertEmpty(list(self.directory.iterdir()))


if __name__ == '__main__':
  absltest.main()
