"""Documents as tokens, against a loop over characters."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import documents
from rnnzoo.data.text import characters

TEXTS = ('abba é\n', 'b', '', 'abcabcabc', 'ζa\U0001f600a', 'x' * 30)


def chunks_of(texts, width=1):
  examples = [
      (tuple(texts[i : i + width]), i % 2) for i in range(0, len(texts), width)
  ]
  return documents.of_records([r for _, r in documents.records(examples)])


def slow(texts, min_frequency, length, end):
  """Counts and encodes one character after the other."""
  cut = [text[: length - end] for text in texts]
  counts = collections.Counter(c for text in cut for c in text)
  known = sorted(c for c, n in counts.items() if n >= min_frequency)
  ids = {c: i + 2 + end for i, c in enumerate(known)}
  rows = [[ids.get(c, 1) for c in text] + [2] * end for text in cut]
  return ''.join(known), rows


class CharactersTest(parameterized.TestCase):

  @parameterized.product(
      min_frequency=(1, 2, 4), length=(2, 5, 40), end=(True, False)
  )
  def test_like_one_character_after_the_other(self, min_frequency, length, end):
    found = chunks_of(TEXTS)
    known = characters.Characters.of_chunks(
        found.chunks, min_frequency, length, end
    )
    symbols, rows = slow(TEXTS, min_frequency, length, end)
    self.assertEqual(known.symbols, symbols)
    self.assertLen(known, len(symbols) + 2 + end)
    examples = characters.examples_of(found, known, length)
    self.assertEqual(examples.inputs.shape, (len(TEXTS), length))
    self.assertEqual(examples.inputs.dtype, np.uint8)
    self.assertEqual(examples.lengths.tolist(), [len(row) for row in rows])
    for tokens, row in zip(examples.inputs.tolist(), rows, strict=True):
      self.assertEqual(tokens, row + [0] * (length - len(row)))
    # As pairs.
    both = characters.examples_of(chunks_of(TEXTS, 2), known, length)
    np.testing.assert_array_equal(
        both.inputs, examples.inputs.reshape(3, 2, length).swapaxes(1, 2)
    )
    np.testing.assert_array_equal(both.lengths, examples.lengths.reshape(3, 2))
    self.assertEqual(both.targets.tolist(), [0, 0, 0])

  def test_135_tokens_of_132_characters(self):
    """The count of S4 and S5: characters, padding, unknown and end."""
    frequent = ''.join(map(chr, range(32, 164)))
    texts = [frequent] * 15 + ['ﬀ'] * 14
    known = characters.Characters.of_chunks(chunks_of(texts).chunks, 15, 4096)
    self.assertLen(known, 135)
    self.assertEqual(known.symbols, frequent)

  def test_many_characters_need_more_bytes(self):
    for count, dtype in ((253, np.uint8), (254, np.uint16)):
      text = ''.join(map(chr, range(256, 256 + count)))
      found = chunks_of([text])
      known = characters.Characters.of_chunks(found.chunks, 1, 300)
      tokens = characters.examples_of(found, known, 300).inputs
      self.assertEqual(tokens.dtype, dtype)
      self.assertEqual(tokens[0, :count].tolist(), list(range(3, 3 + count)))
    text = ''.join(map(chr, range(0x10000, 0x20000)))
    with self.assertRaisesRegex(errors.UserValueError, 'min_frequency'):
      characters.Characters.of_chunks(chunks_of([text]).chunks, 1, 2**17)

  def test_records_of_many_examples(self):
    texts = [str(i) for i in range(2 * documents.CHUNK + 1)]
    found = chunks_of(texts)
    self.assertLen(found.chunks, 3)
    known = characters.Characters.of_chunks(found.chunks, 1, 8)
    tokens = characters.examples_of(found, known, 8).inputs
    text = lambda row: ''.join(known.symbols[i - 3] for i in row if i > 2)
    self.assertEqual([text(row) for row in tokens], texts)


if __name__ == '__main__':
  absltest.main()
