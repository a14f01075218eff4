"""The builder on four small files in the layout of the original ones."""

import gzip
import pathlib
import shutil
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.builders import smnist
import tensorflow_datasets as tfds

IMAGES, _, LABELS, _ = smnist.FILES['train']


class Small(smnist.SMNIST, skip_registration=True):
  name = smnist.NAME
  check_digests = False


class BuilderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir, self.manual_dir = place / 'data', place / 'original'
    self.manual_dir.mkdir()
    smnist.write_fixture_files(self.manual_dir)

  def prepare(self, builder=Small):
    return smnist.prepare(self.data_dir, self.manual_dir, builder)

  def test_roundtrip(self):
    directory = self.prepare()
    self.assertEqual(directory, self.data_dir / 'smnist' / '1.0.0')
    self.assertEqual(self.prepare(), directory)  # There already.
    for split, (images, labels) in smnist.read(self.data_dir).items():
      x, y = smnist.read_originals(self.manual_dir, split, False)
      np.testing.assert_array_equal(images, x)
      np.testing.assert_array_equal(labels, y)
      self.assertEqual((images.dtype, labels.dtype), (np.uint8, np.int32))
    records = tfds.builder_from_directory(directory).as_data_source('test')
    self.assertEqual(records[0]['images'].shape, (60, 28, 28))
    self.assertEqual(
        smnist.describe(self.data_dir),
        dict(train='240 images', test='60 images'),
    )
    self.assertNotIn('tensorflow', sys.modules)

  def test_many_records_keep_their_order(self):
    images = np.zeros((2500, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(2500), 256)
    smnist.write_idx(self.manual_dir / IMAGES, images)
    smnist.write_idx(
        self.manual_dir / LABELS, (np.arange(2500) % 10).astype(np.uint8)
    )
    self.prepare()
    found, labels = smnist.read(self.data_dir)['train']
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(labels, np.arange(2500) % 10)

  def test_unpacked_files_and_names_with_a_dot(self):
    expected = smnist.read_originals(self.manual_dir, 'train', False)
    for name in smnist.NAMES:
      path = self.manual_dir / name
      plain = name.removesuffix('.gz')
      if 'labels' in name:
        plain = plain.replace('-idx', '.idx')
      (self.manual_dir / plain).write_bytes(gzip.decompress(path.read_bytes()))
      path.unlink()
    found = smnist.read_originals(self.manual_dir, 'train')
    np.testing.assert_array_equal(found[0], expected[0])
    self.prepare(smnist.SMNIST)  # There is no digest of unpacked files.
    np.testing.assert_array_equal(
        smnist.read(self.data_dir)['train'][0], expected[0]
    )

  def test_the_idx_format(self):
    path = self.manual_dir / 'x'
    path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)]))
    self.assertEqual(smnist.read_idx(path).tolist(), [[0, 1, 2], [3, 4, 5]])
    for content in (
        b'', b'\0\0', bytes([0, 0, 8, 0]), bytes([0, 0, 8, 1, 0]),
        bytes([0, 0, 13, 1, 0, 0, 0, 1, 5]), bytes([1, 0, 8, 1, 0, 0, 0, 1, 5]),
        bytes([0, 0, 8, 1, 0, 0, 0, 2, 5]),
        bytes([0, 0, 8, 1, 0, 0, 0, 1, 5, 5]),
        bytes([0, 0, 8, 1, 0, 0, 0, 0]), bytes([0, 0, 8, 2] + [255] * 8),
    ):
      path.write_bytes(content)
      with self.assertRaisesRegex(errors.UserValueError, 'idx format'):
        smnist.read_idx(path)

  def test_wrong_originals(self):
    with self.assertRaisesRegex(
        errors.UserValueError,
        f'{IMAGES} is not the original file of MNIST, whose SHA-256 is '
        '440fcabf.*unpack it',
    ):
      self.prepare(smnist.SMNIST)
    path = self.manual_dir / LABELS
    content = path.read_bytes()
    smnist.write_idx(path, np.full(240, 10, np.uint8))
    with self.assertRaisesRegex(errors.UserValueError, 'labels from 0 to 9'):
      self.prepare()
    smnist.write_idx(path, np.zeros(239, np.uint8))
    with self.assertRaisesRegex(errors.UserValueError, r'labels \[239\]'):
      self.prepare()
    path.write_bytes(content[:-20])
    with self.assertRaisesRegex(errors.UserError, f'{LABELS} cannot be read'):
      self.prepare()
    path.write_bytes(b'text')
    with self.assertRaisesRegex(errors.UserError, 'Not a gzipped file'):
      self.prepare()
    path.unlink()
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        f'no file {LABELS} or .* in {self.manual_dir}.*https://',
    ) as caught:
      self.prepare()
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse((self.data_dir / 'smnist' / '1.0.0').exists())

  def test_no_directory(self):
    with self.assertRaisesRegex(
        errors.UserValueError, f'needs --manual_dir=DIR.*{IMAGES}.*https://'
    ):
      smnist.prepare(self.data_dir)

  def test_never_prepared(self):
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        f'smnist is not in {self.data_dir}. To prepare it: python '
        f'scripts/prepare_datasets.py smnist --data_dir={self.data_dir} '
        f'--manual_dir=DIR, where DIR has the files {IMAGES}, .* from https://'
        '.*--config.data.data_dir or [$]RNNZOO_DATA_DIR',
    ) as caught:
      data.load(
          dict(name='smnist', data_dir=str(self.data_dir)), batch_size=4, seed=0
      )
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters('half', 'empty', 'missing', 'moved')
  def test_damaged_files(self, damage):
    directory = self.prepare()
    shard = directory / 'smnist-train.array_record-00000-of-00001'
    if damage == 'half':
      shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    elif damage == 'empty':
      shard.write_bytes(b'')
    elif damage == 'missing':
      shard.unlink()
    else:
      shutil.copytree(directory, directory.parent / 'elsewhere')
      info = directory / 'dataset_info.json'
      info.write_text(
          info.read_text().replace('{DATASET}-', '../elsewhere/{DATASET}-')
      )
    with self.assertRaisesRegex(
        errors.UserError, 'smnist cannot be read|smnist-train.*cannot be read'
    ) as caught:
      smnist.read(self.data_dir)
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
