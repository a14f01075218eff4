"""Formal languages against definitions that look at strings."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.synthetic import formal_language

SYMBOLS = '01234+-*()x='


def evaluate(text):
  """The value of an expression, which Python's grammar has too, modulo 5."""
  return eval(text, {}) % 5  # pylint: disable=eval-used


def majority(string):
  counts = collections.Counter(string)
  return max(counts, key=lambda token: (counts[token], token))


def solve(string):
  left, right = ''.join(SYMBOLS[token] for token in string).split('=')
  roots = [
      digit for digit in range(5)
      if evaluate(left.replace('x', str(digit))) == int(right)
  ]
  assert left.count('x') == 1 and len(roots) == 1  # Without *, x is unique.
  return roots


def value(string):
  return [evaluate(''.join(SYMBOLS[token] for token in string))]


# What the answer to a string is.
ANSWERS = dict(
    parity=lambda s: [s.count(1) % 2],
    even_pairs=lambda s: [
        sum(''.join(map(str, s)).count(p) for p in ('01', '10')) % 2
    ],
    cycle_navigation=lambda s: [(s.count(2) - s.count(0)) % 5],
    modular_arithmetic=lambda s: [
        evaluate(''.join('01234+-*'[token] for token in s))
    ],
    majority=lambda s: [majority(s)],
    majority_count=lambda s: [max(map(s.count, s))],
    modular_arithmetic_brackets=value,
    solve_equation=solve,
    bucket_sort=sorted,
)


def load(language, batch_size=64, seed=0, **fields):
  config = dict(
      name='formal_language', language=language, max_length=9,
      test_lengths=(9, 20), test_examples=30,
  )
  return data.load(config | fields, batch_size=batch_size, seed=seed)


def strings(language, batch):
  """Yields the string and the answer of each row that counts."""
  question = formal_language.LANGUAGES[language].ids
  for inputs, targets, mask, exists in zip(
      batch['inputs'], batch['targets'], batch['mask'], batch['input_mask'],
      strict=True
  ):
    if mask.any():
      np.testing.assert_array_equal(mask, exists & (inputs == question))
      assert not inputs[~exists].any() and not targets[~mask].any()
      assert (exists[:-1] >= exists[1:]).all()
      string = inputs[exists & ~mask].tolist()
      # The questions follow the string.
      assert mask[len(string) : int(exists.sum())].all()
      yield string, targets[mask].tolist()


class FormalLanguageTest(parameterized.TestCase):

  @parameterized.parameters(*ANSWERS)
  def test_answers(self, language):
    dataset = load(language)
    batches = [dataset.train_batch(step) for step in (1, 2)]
    batches += [
        batch for split in ('test_9', 'test_20')
        for batch in dataset.eval_batches(split)
    ]
    answers = set()
    for batch in batches:
      for string, answer in strings(language, batch):
        self.assertEqual(answer, ANSWERS[language](string))
        answers.update(answer)
    chance = dataset.baselines()['chance_accuracy']
    if language in ('majority', 'majority_count'):
      self.assertEqual(chance, 1 / 63)
    else:
      self.assertLen(answers, round(1 / chance))

  def test_missing_duplicate(self):
    ids = collections.Counter()
    for string, answer in strings(
        'missing_duplicate', load('missing_duplicate').train_batch(1)
    ):
      length = len(string)
      possible = [  # `n` ids and the beginning of their copy.
          string[length - n] for n in range(1, min(9, length) + 1)
          if length < 2 * n and string[n:] == string[: length - n]
      ]
      self.assertIn(answer[0], possible)
      ids.update(string)
    self.assertEqual(set(ids), set(range(9)))

  @parameterized.parameters(*formal_language.LANGUAGES)
  def test_lengths(self, language):
    dataset = load(language, min_length=3, eval_examples=200)
    seen = {
        split: {
            len(string) for batch in dataset.eval_batches(split)
            for string, _ in strings(language, batch)
        }
        for split in dataset.eval_splits
    }
    if language == 'missing_duplicate':  # With the beginning of the copy.
      self.assertBetween(max(seen['test']), 10, 17)
    elif language == 'modular_arithmetic':
      self.assertEqual(seen['test'], {3, 5, 7, 9})
      self.assertEqual(seen['test_9'], {9})
      self.assertContainsSubset(seen['test_20'], range(9, 20, 2))
    else:
      self.assertEqual(seen['test'], set(range(3, 10)))
      self.assertEqual(seen['test_9'], {9})
      self.assertContainsSubset(seen['test_20'], range(9, 21))
      self.assertGreater(max(seen['test_20']), 15)

  def test_the_shortest_strings(self):
    for language in formal_language.LANGUAGES:
      dataset = load(language, max_length=1, test_lengths=())
      for string, answer in strings(language, dataset.train_batch(1)):
        self.assertLen(string, 3 if language == 'solve_equation' else 1)
        self.assertLen(answer, 1)

  def test_all_expressions_of_few_symbols_occur(self):
    dataset = load(
        'modular_arithmetic_brackets', min_length=5, max_length=5,
        test_lengths=(), batch_size=2000,
    )
    texts = {
        ''.join(SYMBOLS[token] for token in string) for string, _ in
        strings('modular_arithmetic_brackets', dataset.train_batch(1))
    }
    self.assertEqual(
        texts,
        {f'({a}{o}{b})' for a in range(5) for b in range(5) for o in '+-*'},
    )

  @parameterized.parameters(
      (dict(min_length=10), 'min_length=10 is larger than data.max_length=9'),
      (dict(test_lengths=(8,)), 'from data.max_length=9 to 2048, got 8'),
      (dict(test_lengths=(5000,)), 'from data.max_length=9 to 2048, got 5000'),
      (dict(language='dyck'), 'data.language must be one of parity'),
  )
  def test_bad_fields(self, changes, message):
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      load(**dict(language='parity') | changes)
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
