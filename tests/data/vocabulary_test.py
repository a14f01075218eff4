"""Text to ids and back, and the errors for what is not in the vocabulary."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import errors
from rnnzoo.data import vocabulary

TEXT = 'naïve\r\n\t“日本” 🙂 \x00z'


class VocabularyTest(parameterized.TestCase):

  @parameterized.parameters(
      (vocabulary.Vocabulary.of_text(TEXT),), (vocabulary.Vocabulary('byte'),)
  )
  def test_roundtrip(self, vocab):
    ids = vocab.encode(TEXT)
    self.assertEqual(ids.dtype, np.int32)
    self.assertBetween(ids.min(), 0, len(vocab) - 1)
    self.assertEqual(vocab.decode(ids), TEXT)
    self.assertEqual(vocab.decode(ids.tolist()), TEXT)
    written = json.dumps(vocab.to_json())
    kept = vocabulary.Vocabulary.from_json(json.loads(written))
    self.assertEqual(kept, vocab)
    self.assertEqual(vocab.encode('').shape, (0,))
    self.assertEqual(vocab.decode([]), '')

  def test_ids_are_places_in_sorted_order(self):
    vocab = vocabulary.Vocabulary.of_text('banana\n')
    self.assertEqual(vocab.symbols, '\nabn')
    np.testing.assert_array_equal(vocab.encode('nab'), [3, 1, 2])

  def test_bytes(self):
    vocab = vocabulary.Vocabulary('byte')
    self.assertLen(vocab, 256)
    np.testing.assert_array_equal(vocab.encode('é'), [0xC3, 0xA9])
    self.assertEqual(vocab.decode([0xC3]), '\ufffd')
    np.testing.assert_array_equal(vocab.encode('\udcc3'), [0xC3])
    # JSON may have a surrogate that is no byte.
    text = 'a\ud800\udd00'
    self.assertEqual(vocab.decode(vocab.encode(text)), 'a\ufffd\ufffd')

  def test_unknown_characters(self):
    vocab = vocabulary.Vocabulary.of_text('abc')
    with self.assertRaisesRegex(
        errors.UserValueError, r"of 3 characters lacks 'é', '\\n'\.$"
    ):
      vocab.encode('abécé\n')
    with self.assertRaisesRegex(errors.UserValueError, "'m' and 16 more"):
      vocab.encode('defghijklmnopqrstuvwxyzABC')
    with self.assertRaisesRegex(errors.UserValueError, "lacks '.udcc3'"):
      vocab.encode('a\udcc3')  # From a command line that is not UTF-8.
    with self.assertRaisesRegex(errors.UserValueError, "of 0 characters"):
      vocabulary.Vocabulary('char').encode('a')

  def test_bad_ids(self):
    vocab = vocabulary.Vocabulary.of_text('abc')
    for ids in ([3], [-1, 0]):
      with self.assertRaisesRegex(ValueError, r'in \[0, 3\)'):
        vocab.decode(ids)

  def test_bad_descriptions(self):
    for fields in ({}, {'level': 'char'}, None):
      with self.assertRaisesRegex(errors.UserValueError, '"symbols"'):
        vocabulary.Vocabulary.from_json(fields)
    for level, symbols in (('word', ''), ('char', 'ba'), ('byte', 'ab')):
      with self.assertRaises(errors.UserValueError):
        vocabulary.Vocabulary(level, symbols)


if __name__ == '__main__':
  absltest.main()
