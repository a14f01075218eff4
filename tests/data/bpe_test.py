"""Byte-pair encoding: exact, deterministic, and readable errors."""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data import bpe
from rnnzoo.data import vocabulary
from rnnzoo.data.text import corpus
from rnnzoo.training import checks

TEXT = corpus.fixture_text()
STRANGE = 'naïve\r\n\t“日本” 🙂 \x00z\n\n  end '
_TRAIN = (
    'import hashlib; from rnnzoo.data import bpe; '
    'from rnnzoo.data.text import corpus; '
    'print(hashlib.sha256(bpe.train([corpus.fixture_text()], 300).encode())'
    '.hexdigest())'
)


class BPETest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )

  def load(self, content=TEXT, **fields):
    path = self.directory / 'text.txt'
    path.write_bytes(content.encode())
    config = dict(
        name='text_file', path=str(path), sequence_length=8, level='bpe',
        bpe_size=300,
    )
    return data.load(config | fields, batch_size=4, seed=0)

  def test_every_text_comes_back(self):
    learned = bpe.train([TEXT], 300)
    words = vocabulary.Vocabulary('bpe', learned)
    self.assertLen(words, 300)
    kept = vocabulary.Vocabulary.from_json(
        json.loads(json.dumps(words.to_json()))
    )
    self.assertEqual(kept, words)
    for text in (TEXT, STRANGE, STRANGE * 20_000, ''):
      ids = kept.encode(text)
      self.assertEqual(ids.dtype, np.int32)
      self.assertEqual(kept.decode(ids), text)
      if len(text) < 1000:
        decode = bpe.decoder(kept.symbols)
        self.assertEqual(''.join(map(decode, ids)), text)
    # Frequent sequences became tokens.
    self.assertLess(len(words.encode(TEXT)), 0.8 * len(TEXT))
    with self.assertRaisesRegex(ValueError, r'in \[0, 300\)'):
      words.decode([300])

  def test_learning_is_deterministic(self):
    # The hash tables of another process have another order.
    other = subprocess.run(
        [sys.executable, '-c', _TRAIN], capture_output=True, text=True,
        check=True,
    )
    here = hashlib.sha256(bpe.train([TEXT], 300).encode()).hexdigest()
    self.assertEqual(other.stdout.strip(), here)

  def test_learned_from_the_training_part_only(self):
    cut = corpus.split_text(TEXT)
    changed = cut['train'] + 'zq' * (len(TEXT) // 20)
    one, two = self.load(), self.load(changed[:len(TEXT)])
    self.assertEqual(one.vocabulary, two.vocabulary)

  def test_bits_per_byte_compare(self):
    found = {
        level: self.load(TEXT + 'é' * 50, level=level)
        for level in ('byte', 'char', 'bpe')
    }
    for level, dataset in found.items():
      test = corpus.split_text(TEXT + 'é' * 50)['test']
      targets = sum(
          int(batch['mask'].sum()) for batch in dataset.eval_batches('test')
      )
      # All bytes but those of the first token.
      self.assertBetween(
          dataset.bytes_per_token * targets, len(test.encode()) - 10,
          len(test.encode()) - (0 if level == 'byte' else 1),
      )
    self.assertEqual(found['byte'].bytes_per_token, 1)
    self.assertGreater(found['bpe'].bytes_per_token, 1.2)

  def test_bytes_of_first_tokens_that_are_parts_of_characters(self):
    content = ''.join(f'日{number:03}|' for number in range(400))
    dataset = self.load(content, separator='|', bpe_size=256)
    # Three bytes of the first character, of which two are targets.
    batches = list(dataset.eval_batches('test'))
    targets = sum(int(batch['mask'].sum()) for batch in batches)
    self.assertEqual(targets, 20 * 6)
    self.assertEqual(dataset.bytes_per_token, 1)

  def test_a_finished_tokenizer(self):
    path = self.directory / 'tokenizer.json'
    path.write_text(bpe.train([STRANGE * 9], 260))
    dataset = self.load(tokenizer=str(path))
    self.assertEqual(dataset.vocab_size, 260)
    self.assertEqual(dataset.vocabulary.symbols, path.read_text())
    for content, message in (
        (None, 'There is no file .*tokenizer.json .data.tokenizer'),
        (b'\xff', 'is no tokenizer.json: it is not JSON'),
        (b'{"a": 1}', 'no tokenizer that the library .* reads'),
    ):
      path.unlink(missing_ok=True)
      if content is not None:
        path.write_bytes(content)
      with self.assertRaisesRegex(errors.UserError, message) as caught:
        self.load(tokenizer=str(path))
      self.assertNotIn('\n', str(caught.exception))
    with self.assertRaisesRegex(errors.UserError, 'needs data.level=bpe'):
      self.load(tokenizer=str(path), level='byte')

  def test_without_the_library(self):
    with mock.patch.dict(sys.modules, tokenizers=None):
      with self.assertRaisesRegex(errors.UserError, 'pip install .tokenizers'):
        self.load()

  def test_another_vocabulary_is_refused(self):
    one, two = (
        vocabulary.Vocabulary('bpe', bpe.train([text], 270)).to_json()
        for text in (TEXT, STRANGE * 9)
    )
    byte = vocabulary.Vocabulary('byte').to_json()
    checks.check_vocabulary(one, dict(one))
    for now, then, message in (
        (one, two, 'different vocabularies: bpe .* now, bpe .* there'),
        (byte, one, 'byte now, bpe .* there.*tokenizer.json'),
        (None, one, 'no text now, bpe'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message) as caught:
        checks.check_vocabulary(now, then)
      self.assertLess(len(str(caught.exception)), 300)


if __name__ == '__main__':
  absltest.main()
