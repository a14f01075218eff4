"""Windows, streams and evaluation of text against the text itself."""

import os
import pathlib
import tempfile
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data import settings
from rnnzoo.data.text import corpus
from rnnzoo.data.text import python_docs


class TextFileTest(parameterized.TestCase):

  def write(self, content):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(directory) / 'text.txt'
    path.write_bytes(content)
    return str(path)

  def load(self, content, batch_size=4, seed=0, **fields):
    path = self.write(content.encode())
    config = {'name': 'text_file', 'path': path, 'sequence_length': 8} | fields
    return data.load(config, batch_size=batch_size, seed=seed)

  def numbers(self, count=200, **arguments):
    """Loads a text without repetition: token i of it is the character i."""
    return self.load(''.join(map(chr, range(256, 256 + count))), **arguments)

  def test_an_epoch_has_every_window_once(self):
    dataset = self.numbers(200)  # 180 to train on: 172 windows, 43 batches.
    for first_step in (1, 44):
      starts = []
      for step in range(first_step, first_step + 43):
        batch = dataset.train_batch(step)
        starts.extend(batch['inputs'][:, 0])
        expected = batch['inputs'][:, :1] + np.arange(9)
        np.testing.assert_array_equal(batch['inputs'], expected[:, :-1])
        np.testing.assert_array_equal(batch['targets'], expected[:, 1:])
      np.testing.assert_array_equal(np.sort(starts), np.arange(172))
      self.assertNotEqual(sorted(starts), starts)

  @parameterized.parameters(8, 9, 1, 300)
  def test_evaluation_has_every_target_once(self, length):
    # 20 % of 400 held out; the targets are all but the first of each half.
    dataset = self.numbers(4000, sequence_length=length)
    for split, start in (('validation', 3600), ('test', 3800)):
      seen = []
      for batch in dataset.eval_batches(split):
        mask = batch['mask']
        self.assertEqual(mask.shape, (4, length))
        seen.extend(batch['targets'][mask])
        np.testing.assert_array_equal(
            batch['inputs'][mask] + 1, batch['targets'][mask]
        )
        np.testing.assert_array_equal(batch['inputs'][~mask], 0)
        np.testing.assert_array_equal(batch['targets'][~mask], 0)
      np.testing.assert_array_equal(seen, np.arange(start + 1, start + 200))

  def test_streams_continue_and_say_where_they_start(self):
    # 900 to train on, 224 for each of 4 rows: 28 windows of 8, none to spare;
    # with windows of 9, 24 and 8 tokens to spare.
    for length, windows in ((8, 28), (9, 24)):
      dataset = self.numbers(1000, contiguous=True, sequence_length=length)
      first_tokens = set()
      for epoch in range(3):
        last = None
        for step in range(epoch * windows + 1, (epoch + 1) * windows + 1):
          batch = dataset.train_batch(step)
          self.assertEqual(batch['inputs'].max() < 900, True)
          np.testing.assert_array_equal(batch['inputs'] + 1, batch['targets'])
          np.testing.assert_array_equal(np.diff(batch['inputs']), 1)
          reset = np.zeros((4, length), bool)
          reset[:, 0] = last is None
          np.testing.assert_array_equal(batch['reset'], reset)
          if last is None:
            first_tokens.add(int(batch['inputs'][0, 0]))
          else:
            np.testing.assert_array_equal(batch['inputs'][:, 0], last)
          last = batch['targets'][:, -1]
      self.assertEqual(len(first_tokens) > 1, length == 9)

  def test_split(self):
    pieces = corpus.split_text('x' * 901 + 'y' * 51 + 'z' * 51)
    self.assertEqual([len(p) for p in pieces.values()], [902, 50, 51])
    self.assertEqual(list(pieces), ['train', 'validation', 'test'])

  def test_vocabulary_is_of_the_whole_text(self):
    dataset = self.load('ab' * 100 + '\r\né')
    self.assertEqual(dataset.vocabulary.symbols, '\n\rabé')
    self.assertEqual(dataset.vocab_size, 5)
    dataset = self.load('ab' * 100 + 'é', level='byte')
    self.assertEqual(dataset.vocab_size, 256)
    last = list(dataset.eval_batches('test'))[-1]
    np.testing.assert_array_equal(
        last['targets'][last['mask']][-2:], [0xC3, 0xA9]
    )

  def test_byte_order_mark_is_dropped(self):
    self.assertEqual(self.load('\ufeff' + 'ab' * 100).vocab_size, 2)

  def test_baselines(self):
    # 90 a and 810 b to train on, a and b equally often in the test.
    content = 'a' * 90 + 'b' * 810 + 'b' * 50 + 'ab' * 25
    found = self.load(content).baselines()
    p = 91 / 902
    self.assertAlmostEqual(
        found['unigram_bits'], -0.5 * (np.log2(p) + np.log2(1 - p))
    )
    # 50 letters in a header, a trailer and a handful of bytes.
    self.assertBetween(found['gzip_bits'], 0.1, 8 * 30 / 50)
    # What the train split holds already costs next to nothing.
    rng = np.random.default_rng(0)
    noise = ''.join(map(chr, rng.integers(97, 123, 5000)))
    copied = self.load(noise * 20).baselines()['gzip_bits']
    self.assertLess(copied, 1.0)
    self.assertGreater(self.load(noise).baselines()['gzip_bits'], 4.0)
    # Nothing is free, however short it is.
    for n in range(60, 1500, 40):
      found = self.load(noise[:n] + 'ab' * 20).baselines()['gzip_bits']
      self.assertGreater(found, 0)
      self.assertGreater(self.load('abc' * n).baselines()['gzip_bits'], 0)

  def test_objects_serve_as_configs(self):
    fields = dict(
        name='text_file', path=self.write(b'ab' * 100), sequence_length=8,
        data_dir='', level=None,
    )
    dataset = data.load(types.SimpleNamespace(**fields), batch_size=2, seed=0)
    self.assertEqual(dataset.train_batch(1)['inputs'].shape, (2, 8))

  def test_bad_files(self):
    empty = self.enterContext(tempfile.TemporaryDirectory())
    for path, kind, message in (
        ('', errors.UserFileNotFoundError, 'needs data.path'),
        (f'{empty}/no', errors.UserFileNotFoundError, 'There is no file .*no'),
        (empty, errors.UserFileNotFoundError, 'folder .* has no files'),
        (
            self.write(b'abc\xff'),
            errors.UserValueError,
            'not UTF-8 text: invalid start byte at byte 3',
        ),
    ):
      with self.assertRaisesRegex(kind, message):
        data.load({'name': 'text_file', 'path': path}, batch_size=1, seed=0)

  def test_short_texts(self):
    for content, message in (
        ('', 'at least 9 tokens .* train 0, validation 0, test 0'),
        ('a' * 9, 'at least 9 tokens .* train 8, validation 0, test 1'),
        ('a' * 19, 'need at least 2 tokens each.* train 17, validation 1'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        self.load(content)
    with self.assertRaisesRegex(
        errors.UserValueError, '90 tokens in batch_size=16 streams leave 5 for'
    ):
      self.load('a' * 100, batch_size=16, contiguous=True)


  def test_a_batch_has_more_tokens_than_the_text(self):
    with self.assertLogs('absl', 'WARNING') as logs:
      self.load('ab' * 150, batch_size=64)
    self.assertIn(
        'only 270 tokens to train on, but a batch has 512 (batch_size 64 x '
        'data.sequence_length 8)', logs.output[0]
    )
    with self.assertNoLogs('absl', 'WARNING'):
      self.load('ab' * 150, batch_size=32)


class PythonDocsTest(absltest.TestCase):

  def test_held_out_text_is_not_training_text(self):
    texts = python_docs.read()
    self.assertGreater(len(texts['train']), 250_000)
    pieces = [
        texts['test'][i : i + 60] for i in range(0, len(texts['test']), 60)
    ]
    seen = sum(piece in texts['train'] for piece in pieces)
    self.assertLess(seen, 0.03 * len(pieces))

  def test_baselines(self):
    dataset = data.load({'name': 'python_docs'}, batch_size=1, seed=0)
    found = dataset.baselines()
    self.assertBetween(found['unigram_bits'], 4, 5)
    self.assertBetween(found['gzip_bits'], 1.8, 2.8)


class DataDirectoryTest(parameterized.TestCase):

  def directory(self, config, **environment):
    unset = {'RNNZOO_DATA_DIR': '', 'XDG_CACHE_HOME': '', 'HOME': '/home/x'}
    with mock.patch.dict(os.environ, unset | environment):
      return str(settings.data_directory(config))

  def test_order(self):
    named = {'RNNZOO_DATA_DIR': '/from/env', 'XDG_CACHE_HOME': '/cache'}
    self.assertEqual(self.directory({'data_dir': '/a'}, **named), '/a')
    self.assertEqual(self.directory({'data_dir': '~/a'}, **named), '/home/x/a')
    self.assertEqual(self.directory({'data_dir': ''}, **named), '/from/env')
    self.assertEqual(self.directory({}, XDG_CACHE_HOME='/c'), '/c/rnnzoo')
    self.assertEqual(self.directory(None), '/home/x/.cache/rnnzoo')


if __name__ == '__main__':
  absltest.main()
