"""enwik8 and text8: the splits, the forms of the file, and what is missing."""

import pathlib
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.text import wikipedia

# Both cuts, at 3600 and at 3800, lie inside of a character.
CONTENT = ('x' + 'é' * 1999 + 'x').encode()


class WikipediaTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    self.enterContext(mock.patch.object(wikipedia, 'SIZE', len(CONTENT)))

  def load(self, name='enwik8', **fields):
    config = dict(
        name=name, data_dir=str(self.directory / 'data'), sequence_length=16
    )
    return data.load(config | fields, batch_size=4, seed=0)

  def test_every_byte_is_where_it_belongs(self):
    for path in ('enwik8', 'data/enwik8', 'data/enwik8/enwik8.zip'):
      file = self.directory / path
      file.parent.mkdir(parents=True, exist_ok=True)
      if file.suffix:
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
          archive.writestr('enwik8', CONTENT)
      else:
        file.write_bytes(CONTENT)
      named = dict(path=str(file)) if 'data' not in path else {}
      dataset = self.load(**named)
      self.assertEqual((dataset.unit, dataset.vocab_size), ('bytes', 256))
      self.assertEqual(dataset.bytes_per_token, 1)
      first = int(0.9 * len(CONTENT))
      second = first + (len(CONTENT) - first) // 2
      for split, part in (
          ('validation', CONTENT[first:second]), ('test', CONTENT[second:])
      ):
        targets = np.concatenate([
            batch['targets'][batch['mask']]
            for batch in dataset.eval_batches(split)
        ])
        self.assertEqual(bytes(targets.tolist()), part[1:])
      self.assertLen(dataset.source['sha256'], 64)
      self.assertEqual(self.load(level='char', **named).vocab_size, 3)
      file.unlink()
      if file.parent.name == 'enwik8':
        file.parent.rmdir()

  def test_text8_is_read_by_characters(self):
    file = self.directory / 'text8.zip'
    text = ('the cat sat ' * len(CONTENT))[:len(CONTENT)]
    with zipfile.ZipFile(file, 'w') as archive:
      archive.writestr('text8', text)
    dataset = self.load('text8', path=str(file))
    self.assertEqual(dataset.unit, 'characters')
    self.assertEqual(dataset.vocabulary.symbols, ' acehst')

  def test_bad_files(self):
    file = self.directory / 'enwik8.zip'
    message = r'There is no enwik8 in .*curl -O https://.*/enwik8.zip .*bytes'
    with self.assertRaisesRegex(errors.UserFileNotFoundError, message):
      self.load()
    with self.assertRaisesRegex(errors.UserError, 'no file .*zip .data.path'):
      self.load(path=str(file))
    for content, message in (
        (b'PK', 'is no zip file with a file enwik8 in it'), (None, 'no item')
    ):
      if content:
        file.write_bytes(content)
      else:
        with zipfile.ZipFile(file, 'w') as archive:
          archive.writestr('other', b'')
      with self.assertRaisesRegex(errors.UserValueError, message):
        self.load(path=str(file))
    whole = self.directory / 'enwik8'
    for content, size in ((b'abc', 'got 3'), (CONTENT + b'x', 'more than')):
      whole.write_bytes(content)
      with self.assertRaisesRegex(errors.UserValueError, size) as caught:
        self.load(path=str(whole))
      self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
