"""The builder of film reviews, on small files in the original layout."""

import collections
import pathlib
import sys
import tarfile
import tempfile

from absl.testing import absltest
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.builders import imdb
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums


class Small(imdb.IMDB, skip_registration=True):
  name = imdb.NAME
  check_originals = False


class BuilderTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir, self.manual_dir = place / 'data', place / 'original'
    self.manual_dir.mkdir()
    imdb.write_fixture_files(self.manual_dir)
    self.archive = self.manual_dir / imdb.ARCHIVE

  def unpack(self):
    with tarfile.open(self.archive) as archive:
      archive.extractall(self.manual_dir, filter='data')
    self.archive.unlink()
    return self.manual_dir / imdb.FOLDER

  def prepare(self, builder=Small):
    return imdb.prepare(self.data_dir, self.manual_dir, builder)

  def load(self, **fields):
    config = dict(name='imdb', data_dir=str(self.data_dir)) | fields
    return data.load(config, batch_size=16, seed=0)

  def test_the_archive_and_its_folder_say_the_same(self):
    from_archive = imdb.read_originals(self.manual_dir, False)
    folder = self.unpack()
    for directory in (self.manual_dir, folder):
      self.assertEqual(imdb.read_originals(directory, False), from_archive)
    labels = [label for _, label in from_archive['train']]
    self.assertEqual(labels, [0] * 120 + [1] * 120)  # `unsup` is left out.
    # 10 comes after 9, not after 1, and white space at the ends is removed.
    tenth = folder / 'test' / 'pos' / '10_9.txt'
    tenth.write_text(' caf\N{LATIN SMALL LETTER E WITH ACUTE}\n', 'utf-8')
    found = imdb.read_originals(self.manual_dir, False)['test']
    self.assertEqual(found[40], (('café',), 1))

  def test_roundtrip(self):
    directory = self.prepare()
    self.assertEqual(directory, self.data_dir / 'imdb' / '1.0.0')
    self.assertEqual(self.prepare(), directory)  # There already.
    originals = imdb.read_originals(self.manual_dir, False)
    for split, found in imdb.read(self.data_dir).items():
      self.assertEqual(
          b''.join(text for text, _ in found.chunks).decode('utf-8'),
          ''.join(text for (text,), _ in originals[split]),
      )
      self.assertEqual(
          found.labels.tolist(), [label for _, label in originals[split]]
      )
    self.assertEqual(
        imdb.describe(self.data_dir),
        dict(train='240 reviews', test='60 reviews'),
    )
    self.assertNotIn('tensorflow', sys.modules)

  def test_splits(self):
    self.prepare()
    held_out, published = self.load(), self.load(validation='test')
    self.assertEqual(
        held_out.source['examples'], dict(train=216, validation=24, test=60)
    )
    self.assertEqual(
        published.source['examples'], dict(train=240, validation=60, test=60)
    )
    # The tokens are the same, and the test split is.
    self.assertEqual(held_out.vocab_size, published.vocab_size)

    def rows(dataset, split):
      return [
          (int(target), tuple(row[exists]))
          for batch in dataset.eval_batches(split)
          for target, row, exists, counts in zip(
              batch['targets'], batch['inputs'], batch['input_mask'],
              batch['mask'], strict=True,
          ) if counts
      ]

    test = rows(published, 'test')
    self.assertEqual(rows(published, 'validation'), test)
    self.assertEqual(rows(held_out, 'test'), test)
    validation = rows(held_out, 'validation')
    self.assertEqual(sum(label for label, _ in validation), 12)
    self.assertNotEqual(validation, test[:24])
    self.assertEqual(held_out.baselines(), dict(majority_accuracy=0.5))

  def test_tokens_are_those_of_the_characters(self):
    self.prepare()
    originals = imdb.read_originals(self.manual_dir, False)
    counts = collections.Counter(
        c for (text,), _ in originals['train'] for c in text[:79]
    )
    known = sorted(c for c, n in counts.items() if n >= 1000)
    self.assertLess(len(known), len(counts))
    dataset = self.load(sequence_length=80, min_frequency=1000)
    self.assertEqual(dataset.source['characters'], ''.join(known))
    self.assertEqual(dataset.vocab_size, 3 + len(known))
    batch = dataset.eval_batches('test')[0]
    (text,), label = originals['test'][0]
    expected = [3 + known.index(c) if c in known else 1 for c in text[:79]]
    row = batch['inputs'][0][batch['input_mask'][0]]
    self.assertEqual(row.tolist(), expected + [2])
    self.assertEqual(batch['targets'][0], label)

  def test_the_digest_is_that_of_tfds(self):
    path = pathlib.Path(tfds.__file__).parent.joinpath(
        'datasets', 'imdb_reviews', 'checksums.tsv'
    )
    self.assertEqual(
        checksums.load_url_infos(path)[imdb.ADDRESS].checksum, imdb.DIGEST
    )

  def test_wrong_originals(self):
    with self.assertRaisesRegex(
        errors.UserValueError, 'not the original file, whose SHA-256 is c40f74'
    ):
      self.prepare(imdb.IMDB)
    content = self.archive.read_bytes()
    self.archive.write_bytes(content[: len(content) // 2])
    with self.assertRaisesRegex(errors.UserError, f'{imdb.ARCHIVE} cannot be'):
      self.prepare()
    self.archive.write_bytes(content)
    folder = self.unpack()
    with self.assertRaisesRegex(
        errors.UserValueError, 'must hold 12,500 reviews in train/neg, got 120'
    ):
      self.prepare(imdb.IMDB)
    (folder / 'train' / 'pos' / '3_9.txt').write_bytes(b'caf\xe9')
    with self.assertRaisesRegex(
        errors.UserValueError, 'train/pos/3_9.txt in .* is not UTF-8'
    ):
      self.prepare()
    for path in (folder / 'test' / 'neg').iterdir():
      path.unlink()
    (folder / 'train' / 'pos' / '3_9.txt').unlink()
    with self.assertRaisesRegex(errors.UserValueError, 'test/neg, got 0'):
      self.prepare()
    self.assertFalse((self.data_dir / 'imdb' / '1.0.0').exists())

  def test_nothing_there(self):
    self.archive.unlink()
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        f'no file {imdb.ARCHIVE} and no folder aclImdb in {self.manual_dir}'
        '.*http://',
    ):
      self.prepare()
    with self.assertRaisesRegex(
        errors.UserValueError, f'--manual_dir=DIR.*{imdb.ARCHIVE}.*http://'
    ):
      imdb.prepare(self.data_dir)
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        'imdb is not in .*python scripts/prepare_datasets.py imdb '
        f'--data_dir={self.data_dir} --manual_dir=DIR.*{imdb.ARCHIVE} from '
        'http://',
    ) as caught:
      self.load()
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
