"""The generated set: from a seed alone, with any workers, after any stop."""

import functools
import hashlib
import os
import pathlib
import signal
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.builders import chunks
from rnnzoo.data.builders import listops
import tensorflow_datasets as tfds

_MAKE = chunks.make


class Small(listops.ListOps, skip_registration=True):
  """2,100 expressions of at least 13 chunks."""

  name = listops.NAME
  rules = listops.FIXTURE_RULES
  sizes = {'train': 1900, 'validation': 100, 'test': 100}
  trees = 800


def killed_at(last, function, number):
  """Is `function`, but at chunk `last` its process is killed."""
  if number == last:
    os.kill(os.getpid(), signal.SIGKILL)
  return function(number)


def make_until(last, function, *rest):
  """Is `chunks.make`, but a process is killed at chunk `last`."""
  return _MAKE(functools.partial(killed_at, last, function), *rest)


def digests(directory):
  """Returns the digest of each file of a data set."""
  return {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in directory.iterdir()
  }


class BuilderTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir, self.other_dir = place / 'data', place / 'other'
    self.bars = self.enterContext(mock.patch('sys.stderr'))

  def prepare(self, data_dir=None, seed=0, workers=1):
    return listops.prepare(
        data_dir or self.data_dir, seed=seed, workers=workers,
        builder_class=Small,
    )

  def test_roundtrip(self):
    directory = self.prepare()
    self.assertEqual(directory, self.data_dir / 'listops' / '1.0.0')
    self.assertEqual(self.prepare(), directory)  # There already.
    found = listops.read(self.data_dir)
    self.assertEqual(
        {split: len(u.labels) for split, u in found.items()}, Small.sizes
    )
    # The splits, one after the other, are the trees of the chunks in order.
    expected = [
        listops._chunk(0, Small.rules, Small.trees, number)
        for number in range(30)
    ]
    rows = [
        (row.tobytes(), label) for chunk in expected for row, label in zip(
            np.split(chunk['tokens'], np.cumsum(chunk['lengths'])),
            chunk['labels'],
        )
    ]
    different = list(dict(rows).items())[:2100]
    self.assertLess(len(different), len(rows))
    self.assertEqual(
        b''.join(u.tokens.tobytes() for u in found.values()),
        b''.join(row for row, _ in different),
    )
    self.assertEqual(
        [label for u in found.values() for label in u.labels.tolist()],
        [label for _, label in different],
    )
    origin = listops.origin(self.data_dir)
    used = origin['trees_drawn'] // Small.trees
    self.assertEqual(
        origin['trees_kept'], sum(len(c['labels']) for c in expected[:used])
    )
    self.assertBetween(origin['different'], 2100, origin['trees_kept'] - 1)
    records = tfds.builder_from_directory(directory).as_data_source('train')
    self.assertLen(records, 2)
    self.assertLen(records[0]['labels'], 1000)
    self.assertIn(
        '100 expressions of 5 to', listops.describe(self.data_dir)['test']
    )
    self.assertLen(list((self.data_dir / 'listops').iterdir()), 1)
    self.assertNotIn('tensorflow', sys.modules)

  def test_a_kill_and_any_number_of_workers_change_nothing(self):
    with (
        mock.patch.object(
            chunks, 'make', functools.partial(make_until, 6)
        ),
        self.assertRaisesRegex(errors.UserError, 'Finished parts are kept'),
    ):
      self.prepare(workers=2)
    kept = self.data_dir / 'listops' / 'chunks_of_seed_0'
    numbers = sorted(int(path.stem) for path in kept.glob('*.npz'))
    self.assertContainsSubset(range(4), numbers)
    self.assertNotIn(6, numbers)
    self.assertFalse((self.data_dir / 'listops' / '1.0.0').exists())
    with mock.patch.object(listops, '_chunk', wraps=listops._chunk) as made:
      self.prepare()
    again = [call.args[-1] for call in made.call_args_list]
    self.assertIn(6, again)
    self.assertEmpty(set(again).intersection(numbers))
    self.assertEqual(
        digests(self.data_dir / 'listops' / '1.0.0'),
        digests(self.prepare(self.other_dir)),
    )
    self.assertFalse(kept.exists())

  def test_another_seed(self):
    self.prepare()
    with self.assertRaisesRegex(
        errors.UserValueError, 'holds listops of --seed=0, not of --seed=1'
    ) as caught:
      self.prepare(seed=1)
    self.assertNotIn('\n', str(caught.exception))
    self.prepare(self.other_dir, seed=1)
    one, other = (
        listops.read(u)['test'].tokens for u in (self.data_dir, self.other_dir)
    )
    self.assertNotEqual(one.tobytes(), other.tobytes())

  def test_errors(self):
    with self.assertRaisesRegex(
        errors.UserValueError, 'no --manual_dir.*listops_release'
    ):
      listops.prepare(self.data_dir, self.data_dir)
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        f'listops is not in {self.data_dir}. To generate it: python '
        f'scripts/prepare_datasets.py listops --data_dir={self.data_dir}. ',
    ) as caught:
      data.load(
          dict(name='listops', data_dir=str(self.data_dir)), batch_size=4,
          seed=0,
      )
    self.assertNotIn('\n', str(caught.exception))
    self.data_dir.write_text('a file')
    with self.assertRaisesRegex(
        errors.UserError, 'listops could not be prepared in'
    ):
      self.prepare()

  def test_damaged_files(self):
    directory = self.prepare()
    shard = directory / 'listops-test.array_record-00000-of-00001'
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with self.assertRaisesRegex(errors.UserError, 'listops cannot be read'):
      listops.read(self.data_dir)
    (directory / 'metadata.json').write_text('{')
    with self.assertRaisesRegex(errors.UserError, 'metadata.json cannot be'):
      self.prepare()


if __name__ == '__main__':
  absltest.main()
