"""The builder on a small text of our own, and the real one where it lies."""

import functools
import http.server
import importlib.util
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.builders import tiny_shakespeare
from rnnzoo.data.text import corpus
import tensorflow_datasets as tfds

# array_record pads its files to 64 KiB: more than one such block.
TEXT = ''.join(f'Line {i}: “to be”, {i * i} or not\n' for i in range(8000))


builder_of = tiny_shakespeare.builder_of


class BuilderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.data_dir = pathlib.Path(directory) / 'data'
    self.manual_dir = pathlib.Path(directory) / 'original'
    self.manual_dir.mkdir()
    (self.manual_dir / 'input.txt').write_bytes(TEXT.encode())

  def prepare(self):
    return tiny_shakespeare.prepare(
        self.data_dir, self.manual_dir, builder_of(TEXT.encode())
    )

  def load(self, **fields):
    config = {'name': 'tiny_shakespeare', 'data_dir': str(self.data_dir)}
    return data.load(
        config | {'sequence_length': 32} | fields, batch_size=4, seed=0
    )

  def test_roundtrip(self):
    directory = self.prepare()
    self.assertEqual(directory, self.data_dir / 'tiny_shakespeare' / '1.0.0')
    read = tiny_shakespeare.read(self.data_dir)
    self.assertEqual(read, corpus.split_text(TEXT))
    self.assertEqual(self.prepare(), directory)  # There already.

    # TFDS itself, by the name of its own builder.
    splits = tfds.data_source(
        'tiny_shakespeare', data_dir=self.data_dir, download=False
    )
    for split, text in read.items():
      self.assertLen(splits[split], 1)
      self.assertEqual(splits[split][0]['text'], text.encode())
    self.assertNotIn('tensorflow', sys.modules)

  def test_as_a_data_set(self):
    self.prepare()
    dataset = self.load()
    self.assertEqual(
        dataset.eval_splits, ('validation', 'test', 'nanogpt_validation')
    )
    self.assertEqual(dataset.vocabulary.symbols, ''.join(sorted(set(TEXT))))
    joined = dataset.eval_batches('nanogpt_validation')
    targets = np.concatenate([b['targets'][b['mask']] for b in joined])
    self.assertEqual(
        dataset.vocabulary.decode(targets), TEXT[int(len(TEXT) * 0.9) + 1 :]
    )

  def test_download(self):
    handler = functools.partial(
        QuietHandler, directory=str(self.manual_dir)
    )
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    self.addCleanup(server.server_close)
    self.addCleanup(server.shutdown)
    site = f'http://127.0.0.1:{server.server_port}'

    builder = builder_of(TEXT.encode(), f'{site}/input.txt')
    tiny_shakespeare.prepare(self.data_dir, None, builder)
    self.assertEqual(
        tiny_shakespeare.read(self.data_dir), corpus.split_text(TEXT)
    )

    other = self.data_dir / 'other'
    wrong = builder_of(b'something else', f'{site}/input.txt')
    with self.assertRaisesRegex(
        errors.UserValueError, 'is not the expected .* of 14 bytes'
    ):
      tiny_shakespeare.prepare(other, None, wrong)
    missing = builder_of(TEXT.encode(), f'{site}/missing.txt')
    with self.assertRaisesRegex(
        errors.UserError, '404.*Without a network, get http.*--manual_dir'
    ):
      tiny_shakespeare.prepare(other, None, missing)

  def test_no_network(self):
    with http.server.HTTPServer(('127.0.0.1', 0), QuietHandler) as closed:
      url = f'http://127.0.0.1:{closed.server_port}/input.txt'
    with self.assertRaisesRegex(
        errors.UserError, 'refused.*Without a network, get http.*--manual_dir'
    ):
      tiny_shakespeare.prepare(
          self.data_dir, None, builder_of(TEXT.encode(), url)
      )

  def test_wrong_and_missing_originals(self):
    with self.assertRaisesRegex(
        errors.UserValueError,
        r'input.txt is not the expected tiny_shakespeare text of 1115394 bytes '
        'with SHA-256 86c4e6aa',
    ):
      tiny_shakespeare.prepare(self.data_dir, self.manual_dir)
    self.assertFalse((self.data_dir / 'tiny_shakespeare' / '1.0.0').exists())
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'There is no file input.txt in .*data'
    ):
      tiny_shakespeare.prepare(self.data_dir, self.data_dir)

  def test_unwritable_place(self):
    blocked = self.manual_dir / 'input.txt' / 'data'
    with self.assertRaisesRegex(
        errors.UserError, 'could not be prepared in .*Not a directory'
    ):
      tiny_shakespeare.prepare(
          blocked, self.manual_dir, builder_of(TEXT.encode())
      )

  def test_never_prepared(self):
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        f'is not in {self.data_dir}.* python scripts/prepare_datasets.py '
        f'tiny_shakespeare --data_dir={self.data_dir} .*--manual_dir=DIR.*'
        '--config.data.data_dir or [$]RNNZOO_DATA_DIR',
    ) as caught:
      self.load()
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      'half', 'empty', 'flipped', 'missing', 'no features', 'broken json',
      'tfrecord',
  )
  def test_damaged_files(self, damage):
    directory = self.prepare()
    shard = directory / 'tiny_shakespeare-train.array_record-00000-of-00001'
    info = directory / 'dataset_info.json'
    content = shard.read_bytes()
    if damage == 'half':
      shard.write_bytes(content[: len(content) // 2])
    elif damage == 'empty':
      shard.write_bytes(b'')
    elif damage == 'flipped':
      middle = 20_000
      flipped = bytes([content[middle] ^ 1])
      shard.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    elif damage == 'missing':
      shard.unlink()
    elif damage == 'no features':
      (directory / 'features.json').unlink()
    elif damage == 'broken json':
      info.write_text('{')
    elif damage == 'tfrecord':
      info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    # It says which file; where the description is broken, which directory.
    described = damage in ('no features', 'broken json', 'tfrecord')
    place = f'{directory}(/.*)?' if described else shard
    with self.assertRaisesRegex(
        errors.UserError, f'^{place} of tiny_shakespeare cannot be read'
    ) as caught:
      self.load()
    self.assertNotIn('\n', str(caught.exception))


class QuietHandler(http.server.SimpleHTTPRequestHandler):

  def log_message(self, *unused):
    pass


class ScriptTest(absltest.TestCase):

  root = pathlib.Path(__file__).parents[3]
  script = root / 'scripts' / 'prepare_datasets.py'

  def test_a_failure_is_one_line(self):
    empty = self.enterContext(tempfile.TemporaryDirectory())
    flags = ['--manual_dir', empty, '--data_dir', empty]
    ended = subprocess.run(
        [sys.executable, self.script, 'tiny_shakespeare', *flags],
        env=os.environ | {'PYTHONPATH': str(self.root)},
        capture_output=True, text=True, timeout=60,
    )
    self.assertEqual(ended.returncode, 1)
    self.assertEqual(
        ended.stderr,
        f'prepare_datasets: There is no file input.txt in {empty} '
        '(--manual_dir).\n',
    )

  def test_wrong_usage(self):
    spec = importlib.util.spec_from_file_location('script', self.script)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for function, arguments, message in (
        (script.main, [], 'speech_commands, tiny_shakespeare.'),
        (script.main, ['mnist'], "There is no data set 'mnist'. Name"),
        (script.parse_flags, ['--manual_dirr=x'], "'manual_dirr'"),
    ):
      with (
          mock.patch('sys.stderr', io.StringIO()) as stderr,
          self.assertRaises(SystemExit) as caught,
      ):
        function(['prepare_datasets.py', *arguments])
      self.assertEqual(caught.exception.code, 2)
      self.assertIn(message, stderr.getvalue())


class RealTest(absltest.TestCase):

  def test_the_published_sizes(self):
    data_dir = pathlib.Path(os.environ.get('RNNZOO_DATA_DIR') or '.')
    if not (data_dir / 'tiny_shakespeare').exists():
      self.skipTest('RNNZOO_DATA_DIR names no directory with tiny_shakespeare')
    with mock.patch.dict(os.environ, RNNZOO_DATA_DIR=str(data_dir)):
      dataset = data.load(
          {'name': 'tiny_shakespeare', 'sequence_length': 256},
          batch_size=64, seed=0,
      )
    self.assertEqual(dataset.vocab_size, 65)
    counted = {
        split: sum(int(b['mask'].sum()) for b in dataset.eval_batches(split))
        for split in dataset.eval_splits
    }
    self.assertEqual(
        counted,
        {'validation': 55_769, 'test': 55_769, 'nanogpt_validation': 111_539},
    )
    baselines = dataset.baselines()
    self.assertAlmostEqual(baselines['unigram_bits'], 4.8503, places=3)
    self.assertBetween(baselines['gzip_bits'], 3.1, 3.2)


if __name__ == '__main__':
  absltest.main()
