"""The builder on small files in the layout of the original ones."""

import io
import pathlib
import tarfile
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.builders import cifar10
from tensorflow_datasets.core.utils import shard_utils


class Small(cifar10.Cifar10, skip_registration=True):
  name = cifar10.NAME
  check_originals = False


class ReadBatchTest(parameterized.TestCase):

  def test_the_layout(self):
    # Two images by hand: the label, then the plane of each colour, row by row.
    content, expected = b'', np.zeros((2, 32, 32, 3), np.uint8)
    for number, label in enumerate((7, 2)):
      content += bytes([label])
      for color in range(3):
        for row in range(32):
          for column in range(32):
            value = (100 * number + 50 * color + 3 * row + column) % 256
            content += bytes([value])
            expected[number, row, column, color] = value
    images, labels = cifar10.read_batch(content, 'x')
    np.testing.assert_array_equal(images, expected)
    self.assertEqual(labels.tolist(), [7, 2])
    self.assertEqual((images.dtype, labels.dtype), (np.uint8, np.uint8))
    self.assertEqual(cifar10.batch_bytes(images, labels), content)

  @parameterized.parameters(
      (b'', 0, 'some records of 3,073 bytes, got 0 bytes'),
      (bytes(3072), 0, 'got 3,072 bytes: it is cut short, or another file'),
      (bytes(2 * 3073 - 1), 0, 'got 6,145 bytes'),
      (bytes(2 * 3073), 10_000, 'must hold 10,000 records .* got 6,146 bytes'),
      (bytes([10]) + bytes(3072), 0, 'labels from 0 to 9, got 10'),
  )
  def test_wrong_content(self, content, count, message):
    with self.assertRaisesRegex(errors.UserValueError, f'^x .*{message}'):
      cifar10.read_batch(content, 'x', count)


class BuilderTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir, self.manual_dir = place / 'data', place / 'original'
    self.manual_dir.mkdir()

  def write(self):
    cifar10.write_fixture_archive(self.manual_dir)
    return self.manual_dir / cifar10.ARCHIVE

  def prepare(self, builder=Small):
    return cifar10.prepare(self.data_dir, self.manual_dir, builder)

  def test_roundtrip(self):
    self.write()
    expected = cifar10.read_originals(self.manual_dir, check=False)
    self.assertEqual(
        {split: x.shape for split, (x, _) in expected.items()},
        dict(train=(300, 32, 32, 3), test=(60, 32, 32, 3)),
    )
    directory = self.prepare()
    self.assertEqual(directory, self.data_dir / 'cifar10' / '1.0.0')
    for split, (images, labels) in cifar10.read(self.data_dir).items():
      np.testing.assert_array_equal(images, expected[split][0])
      np.testing.assert_array_equal(labels, expected[split][1])
      self.assertEqual((images.dtype, labels.dtype), (np.uint8, np.int32))
    self.assertEqual(
        cifar10.describe(self.data_dir),
        dict(train='300 images', test='60 images'),
    )

  def test_a_split_is_one_file_of_any_size(self):
    # TFDS makes two files of the 150 MB of the original training images.
    self.write()
    with (
        mock.patch.object(cifar10, 'CHUNK', 20),
        mock.patch.object(shard_utils.ShardConfig, 'min_shard_size', 1),
    ):
      self.prepare()
    self.assertEqual(cifar10.describe(self.data_dir)['train'], '300 images')

  def test_unpacked_files(self):
    archive = self.write()
    expected = cifar10.read_originals(self.manual_dir, check=False)
    with tarfile.open(archive) as files:
      contents = {
          member.name: files.extractfile(member).read() for member in files
      }
    self.assertIn('cifar-10-batches-bin/batches.meta.txt', contents)
    archive.unlink()
    (self.manual_dir / cifar10.FOLDER).mkdir()
    for name, content in contents.items():
      (self.manual_dir / name).write_bytes(content)
    for place in (self.manual_dir, self.manual_dir / cifar10.FOLDER):
      found = cifar10.read_originals(place, check=False)
      for split, arrays in expected.items():
        for array, other in zip(arrays, found[split], strict=True):
          np.testing.assert_array_equal(array, other)
    with self.assertRaisesRegex(
        errors.UserValueError, 'data_batch_1.bin in .* 10,000 records .* cut'
    ):
      self.prepare(cifar10.Cifar10)
    (self.manual_dir / cifar10.FOLDER / 'data_batch_3.bin').unlink()
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'There is no file data_batch_3.bin in'
    ):
      self.prepare()

  def test_wrong_archives(self):
    archive = self.write()
    with self.assertRaisesRegex(
        errors.UserValueError, 'not the original file.*, not c4a38c50'
    ):
      self.prepare(cifar10.Cifar10)
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with self.assertRaisesRegex(
        errors.UserError, f'{cifar10.ARCHIVE} cannot be read: '
    ):
      self.prepare()
    archive.write_bytes(b'text')
    with self.assertRaisesRegex(errors.UserError, 'cannot be read: '):
      self.prepare()
    with tarfile.open(archive, 'w:gz') as files:  # A link is not followed.
      link = tarfile.TarInfo(f'{cifar10.FOLDER}/test_batch.bin')
      link.type, link.linkname = tarfile.SYMTYPE, '../../secret'
      files.addfile(link)
      other = tarfile.TarInfo('test_batch.bin')
      other.size = 1
      files.addfile(other, io.BytesIO(b'1'))
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'There is no file data_batch_1.bin'
    ):
      self.prepare()
    self.assertFalse((self.data_dir / 'cifar10' / '1.0.0').exists())

  def test_missing_originals(self):
    with self.assertRaisesRegex(
        errors.UserValueError, f'needs --manual_dir=DIR.*{cifar10.ARCHIVE}.*ht'
    ):
      cifar10.prepare(self.data_dir)
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        f'no file {cifar10.ARCHIVE} and no folder .* binary version from https',
    ):
      self.prepare()
    (self.manual_dir / 'cifar-10-python.tar.gz').write_bytes(b'')
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        r'cifar-10-python.tar.gz is .* pickles, which are not read. Get the b',
    ) as caught:
      self.prepare()
    self.assertNotIn('\n', str(caught.exception))

  def test_never_prepared(self):
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        'cifar10 is not in .* python scripts/prepare_datasets.py cifar10 '
        f'--data_dir=.* --manual_dir=DIR.*{cifar10.ARCHIVE} from https://',
    ):
      data.load(
          dict(name='cifar10', data_dir=str(self.data_dir)), batch_size=4,
          seed=0,
      )


if __name__ == '__main__':
  absltest.main()
