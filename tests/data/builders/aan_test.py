"""The builder of pairs of papers, on small files in the release's layout."""

import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.builders import aan

TRAIN, VALIDATION, TEST = aan.FILES.values()


class BuilderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir, self.manual_dir = place / 'data', place / 'original'
    self.manual_dir.mkdir()
    aan.write_fixture_files(self.manual_dir)

  def prepare(self):
    return aan.prepare(self.data_dir, self.manual_dir)

  def load(self, **fields):
    config = dict(name='aan', data_dir=str(self.data_dir)) | fields
    return data.load(config, batch_size=16, seed=0)

  def write(self, *lines, name=TRAIN):
    path = self.manual_dir / name
    path.write_bytes(b''.join(line + b'\n' for line in lines))
    return path

  def test_a_file(self):
    text = repr('a\tb\nc é'.encode()).encode()
    path = self.write(
        b"1.0\tP05-1001\tP06-2002\t" + text + b"\tb'second'",
        b"0\tx\ty\tb\"it's\"\tb''",
        b'1\tx\ty\t' + b'z' * 5000 + b'\tplain',
    )
    self.assertEqual(list(aan.read_pairs(path)), [
        (("b'a\\tb\\nc \\xc3\\xa9'", "b'second'"), 1),
        (('b"it\'s"', "b''"), 0),
        (('z' * 4000, 'plain'), 1),
    ])

  def test_roundtrip_and_tokens(self):
    directory = self.prepare()
    self.assertEqual(directory, self.data_dir / 'aan' / '1.0.0')
    self.assertEqual(self.prepare(), directory)  # There already.
    dataset = self.load()
    self.assertEqual((dataset.sequence_length, dataset.sequences), (4000, 2))
    self.assertEqual(
        dataset.source['examples'], dict(train=240, validation=60, test=60)
    )
    train = [pair for pair, _ in aan.read_pairs(self.manual_dir / TRAIN)]
    known = ''.join(sorted(set(''.join(map(''.join, train)))))
    self.assertEqual(dataset.source['characters'], known)
    self.assertEqual(dataset.vocab_size, 3 + len(known))
    self.assertTrue(known.isascii())
    examples = list(aan.read_pairs(self.manual_dir / TEST))
    batch = dataset.eval_batches('test')[3]
    self.assertEqual(batch['mask'].tolist(), [True] * 12 + [False] * 4)
    for row, (pair, label) in enumerate(examples[48:]):
      self.assertEqual(batch['targets'][row], label)
      for which, text in enumerate(pair):
        tokens = batch['inputs'][row, :, which]
        expected = [3 + known.index(c) for c in text] + [2]
        exists = batch['input_mask'][row, :, which]
        self.assertEqual(tokens[exists].tolist(), expected)
        self.assertEqual(int(exists.sum()), len(expected))
        self.assertTrue((tokens[~exists] == 0).all())
    self.assertEqual(
        aan.describe(self.data_dir)['train'], '240 pairs of papers'
    )
    self.assertNotIn('tensorflow', sys.modules)

  def test_short_rows(self):
    self.prepare()
    dataset = self.load(sequence_length=60, append_eos=False)
    batch = dataset.train_batch(1)
    self.assertEqual(batch['inputs'].shape, (16, 60, 2))
    self.assertTrue(batch['input_mask'].all((1, 2)).any())
    with self.assertRaisesRegex(errors.UserValueError, 'at most 4000'):
      self.load(sequence_length=4001)

  def test_the_last_line_may_lack_its_end_but_not_a_part_of_its_text(self):
    path = self.write(b"0\ta\tb\tb'x'\tb'y'", b"1\ta\tb\tb'x'\tb'yes'")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    self.assertLen(list(aan.read_pairs(path)), 2)
    path.write_bytes(content[:-2])
    with self.assertRaisesRegex(
        errors.UserValueError, f'^{path} is cut short: it ends in line 2'
    ):
      self.prepare()

  @parameterized.parameters(
      (b'0\ta\tb\ttext', 'got 4 parts, the first of them .0.'),
      (b'label\ta\tb\tx\ty', "first of them 'label'"),
      (b'2.0\ta\tb\tx\ty', 'a label 0 or 1'),
      (b'0\ta\tb\t\xff\ty', 'not UTF-8'),
  )
  def test_a_wrong_line(self, line, message):
    path = self.write(b'0\ta\tb\tx\ty', line)
    with self.assertRaisesRegex(
        errors.UserValueError, f'Line 2 of {path} .*{message}'
    ) as caught:
      self.prepare()
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse((self.data_dir / 'aan' / '1.0.0').exists())

  def test_where_the_files_are(self):
    folder = self.manual_dir / 'lra_release' / 'tsv_data'
    folder.mkdir(parents=True)
    for name in aan.FILES.values():
      (self.manual_dir / name).rename(folder / name)
    self.prepare()
    self.write(name=VALIDATION)
    with self.assertRaisesRegex(
        errors.UserValueError, f'{VALIDATION} is empty'
    ):
      list(aan.read_pairs(self.manual_dir / VALIDATION))
    (folder / TEST).unlink()
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        f'no file {TEST} in {self.manual_dir} .*{TRAIN}.*https://',
    ):
      self.prepare()
    with self.assertRaisesRegex(
        errors.UserValueError, f'--manual_dir=DIR.*{TEST}.*https://'
    ):
      aan.prepare(self.data_dir)

  def test_never_prepared(self):
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        'aan is not in .*python scripts/prepare_datasets.py aan '
        f'--data_dir={self.data_dir} --manual_dir=DIR.*{TRAIN}.*https://',
    ) as caught:
      self.load()
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
