"""The release on three small files in the layout of the original ones."""

import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.builders import listops
from rnnzoo.data.builders import listops_release
from rnnzoo.data.builders import listops_trees


class Small(listops_release.ListOpsRelease, skip_registration=True):
  name = listops_release.NAME
  sizes = listops.FIXTURE_SIZES


def names(tokens):
  return [listops_trees.TOKENS[token] for token in tokens]


class ReleaseTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir, self.manual_dir = place / 'data', place / 'original'
    self.manual_dir.mkdir()
    listops_release.write_fixture_files(self.manual_dir)
    self.path = self.manual_dir / 'basic_val.tsv'

  def prepare(self, builder=Small):
    return listops_release.prepare(self.data_dir, self.manual_dir, builder)

  def test_the_words_of_the_release(self):
    for source, text in (
        ('( ( ( [MAX 2 ) 9 ) ] )', 'MAX 2 9 X'),
        ('( ( ( [SM 1 ) ( ( ( [MED 3 ) 4 ) ] ) ) ] )', 'SM 1 MED 3 4 X X'),
        ('( ( ( [MIN ( ( ( [MAX 0 ) 5 ) ] ) ) 7 ) ] )', 'MIN MAX 0 5 X 7 X'),
        ('7', '7'),
    ):
      tokens = listops_release.tokens_of(source)
      self.assertEqual((names(tokens), tokens.dtype), (text.split(), np.uint8))
      self.assertEqual(listops_release._source(tokens.tolist()), source)

  def test_roundtrip(self):
    directory = self.prepare()
    self.assertEqual(directory, self.data_dir / 'listops_release' / '1.0.0')
    self.assertEqual(self.prepare(), directory)  # There already.
    found = listops_release.read(self.data_dir)
    for split, name in listops_release.FILES.items():
      lines = (self.manual_dir / name).read_text().splitlines()
      self.assertEqual(lines[0], 'Source\tTarget')
      self.assertLen(lines, 1 + listops.FIXTURE_SIZES[split])
      words = [
          line.split('\t')[0].replace('(', '').replace(')', '')
          .replace(']', 'X').replace('[', '').split() for line in lines[1:]
      ]
      self.assertEqual(found[split].lengths.tolist(), list(map(len, words)))
      self.assertEqual(names(found[split].tokens), sum(words, []))
      self.assertEqual(
          found[split].labels.tolist(),
          [int(line.split('\t')[1]) for line in lines[1:]],
      )
    self.assertIn(
        '100 expressions', listops_release.describe(self.data_dir)['test']
    )
    self.assertNotIn('tensorflow', sys.modules)

  def test_both_ends_of_lines(self):
    content = self.path.read_bytes()
    self.assertIn(b'\r\n', content)
    rows, labels = listops_release.read_original(self.path)
    self.path.write_bytes(content.replace(b'\r\n', b'\n'))
    others, other_labels = listops_release.read_original(self.path)
    self.assertEqual(labels, other_labels)
    for row, other in zip(rows, others, strict=True):
      np.testing.assert_array_equal(row, other)

  @parameterized.parameters(
      '( ( ( [MAX 2 ) 9 ) ] )', '( ( ( [MAX 2 ) 9 ) ] )\t10', '\t3',
      '( ( ( [MAX 2 ) 9 ) ] )\tx', '( ( ( [FIRST 2 ) 9 ) ] )\t2',
      '( ( [MAX 2 ) 9 )\t9', '( ( 2 ) ] [MAX )\t2', '2\t2\t2', '',
  )
  def test_a_damaged_line(self, line):
    lines = self.path.read_text().splitlines()
    lines[7] = line
    self.path.write_text('\n'.join(lines))
    with self.assertRaisesRegex(
        errors.UserValueError, f'Line 8 of {self.path} is damaged: .*MIN'
    ) as caught:
      self.prepare()
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse((self.data_dir / 'listops_release' / '1.0.0').exists())

  def test_wrong_files(self):
    with self.assertRaisesRegex(
        errors.UserValueError, 'must have 96,000 expressions, got 600'
    ):
      self.prepare(listops_release.ListOpsRelease)
    content = self.path.read_bytes()
    self.path.write_bytes(content.replace(b'Source', b'source'))
    with self.assertRaisesRegex(
        errors.UserValueError, 'start with the columns Source and Target'
    ):
      self.prepare()
    self.path.write_bytes(content + b'\xff')
    with self.assertRaisesRegex(
        errors.UserError, f'{self.path} cannot be read'
    ):
      self.prepare()
    self.path.unlink()
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        f'no file basic_val.tsv in {self.manual_dir}.*https://',
    ) as caught:
      self.prepare()
    self.assertNotIn('\n', str(caught.exception))
    with self.assertRaisesRegex(
        errors.UserValueError, 'needs --manual_dir=DIR.*basic_train.*https://'
    ):
      listops_release.prepare(self.data_dir)

  def test_never_prepared(self):
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        f'listops_release is not in {self.data_dir}. To prepare it: python '
        'scripts/prepare_datasets.py listops_release '
        f'--data_dir={self.data_dir} --manual_dir=DIR, where DIR has the files '
        'basic_train.tsv, .*https://',
    ):
      data.load(
          dict(name='listops', source='release', data_dir=str(self.data_dir)),
          batch_size=4, seed=0,
      )


if __name__ == '__main__':
  absltest.main()
