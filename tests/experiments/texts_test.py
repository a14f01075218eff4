"""The pieces of a text, joined, are the text up to the first stop string."""

import doctest
import itertools

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import sampling
from experiments.cli import texts
import numpy as np
from rnnzoo.data import bpe
from rnnzoo.data import vocabulary as vocabularies

LEARNED = bpe.train(['a naïve ☃ ends here, and here it ends\n' * 9], 280)
VOCABULARIES = dict(
    char=vocabularies.Vocabulary.of_text('ab☃'),
    byte=vocabularies.Vocabulary('byte'),
    bpe=vocabularies.Vocabulary('bpe', LEARNED),
)


def cut(text, stops):
  """The definition: what comes before the stop string that ends first."""
  for end in range(len(text) + 1):
    found = [u for u in stops if text[:end].endswith(u)]
    if found:
      return text[: end - max(map(len, found))]
  return text


class TextsTest(parameterized.TestCase):

  @parameterized.parameters(*VOCABULARIES)
  def test_stop_strings(self, level):
    vocabulary, rng = VOCABULARIES[level], np.random.default_rng(0)
    ended = 0
    for _ in range(200):
      text = ''.join(rng.choice(list('ab☃'), rng.integers(1, 12)))
      stops = [
          ''.join(rng.choice(list('ab☃'), rng.integers(1, 4)))
          for _ in range(rng.integers(3))
      ]
      part = texts.Text(vocabulary, stop_strings=stops)
      shown = [part.add(token) for token in vocabulary.encode(text)]
      ended += part.ended
      shown.append(part.finish())
      self.assertEqual(''.join(shown), cut(text, stops), f'{text} {stops}')
      self.assertTrue(part.ended)
    self.assertGreater(ended, 20)

  def test_a_stop_string_over_tokens(self):
    vocabulary = VOCABULARIES['bpe']
    ids = vocabulary.encode(' and here it ends')
    self.assertLess(len(ids), 8)  # So that it ends within a token.
    part = texts.Text(vocabulary, stop_strings=['re i'])
    shown = list(itertools.takewhile(
        lambda _: not part.ended, (part.add(token) for token in ids)
    ))
    self.assertStartsWith(' and he', ''.join(shown))
    self.assertTrue(part.ended)
    self.assertEqual(part.finish(), '')

  @parameterized.parameters('byte', 'bpe')
  def test_broken_characters_come_at_the_end(self, level):
    vocabulary = VOCABULARIES[level]
    ids = [*vocabulary.encode('a'), *vocabulary.encode('☃')[:1]]
    part = texts.Text(vocabulary)
    shown = [part.add(token) for token in ids]
    self.assertEqual(''.join(shown), 'a')
    self.assertEqual(part.finish(), '\ufffd')

  def test_a_stop_token_ends_what_was_held_back(self):
    vocabulary = VOCABULARIES['char']
    part = texts.Text(vocabulary, stop=[2], stop_strings=['ab☃'])
    self.assertEqual([part.add(token) for token in (0, 1, 2)], ['', '', 'ab'])
    self.assertEqual((part.ids, part.stop_tokens), ([0, 1], [2]))
    self.assertEqual(part.add(0), '')

  @parameterized.parameters(*VOCABULARIES)
  def test_tokens_without_a_text(self, level):
    vocabulary = VOCABULARIES[level]
    size, ids = len(vocabulary), vocabulary.encode('ab☃')
    part = texts.Text(vocabulary, stop=[size + 1])
    shown = [part.add(token) for token in (size, *ids, size, size + 1)]
    self.assertEqual(''.join(shown), 'ab☃')
    self.assertEqual((part.ids, part.stop_tokens), (ids.tolist(), []))
    self.assertTrue(part.ended)

  def test_docstrings(self):
    for module in (texts, sampling):
      self.assertEqual(doctest.testmod(module).failed, 0)


if __name__ == '__main__':
  absltest.main()
