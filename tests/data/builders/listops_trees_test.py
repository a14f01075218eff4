"""Trees of ListOps against a recursive evaluator and exact probabilities."""

import math
import statistics

from absl.testing import absltest
from absl.testing import parameterized
from experiments.benchmarks import listops_exact
import numpy as np
from rnnzoo.data.builders import listops_trees
from rnnzoo.data.builders.listops_trees import Rules

FUNCTIONS = {
    'MIN': min,
    'MAX': max,
    'MED': lambda values: int(statistics.median(values)),
    'SM': lambda values: sum(values) % 10,
}


def evaluate(words, depth=1, seen=None):
  """Returns the value of the next expression of an iterator; None at an end.

  Args:
    words: An iterator of strings.
    depth: The depth of the expression.
    seen: A list to which `(operator, number of arguments, depth)` is added.
  """
  word = next(words)
  if word == 'X':
    return None
  if word.isdigit():
    return int(word)
  values = list(iter(lambda: evaluate(words, depth + 1, seen), None))
  if seen is not None:
    seen.append((word, len(values), depth))
  return FUNCTIONS[word](values)


def expressions(found):
  """Yields the words and the value of each expression."""
  ends = np.cumsum(found.lengths)
  for tokens, label in zip(
      np.split(found.tokens, ends)[:-1], found.labels.tolist(), strict=True
  ):
    yield [listops_trees.TOKENS[token] for token in tokens], label


class OracleTest(absltest.TestCase):

  def test_known_values(self):
    for text, value in (
        ('7', 7), ('MAX 2 9 MIN 4 7 X 0 X', 9), ('MIN 3 8 X', 3),
        ('MED 1 2 9 X', 2), ('MED 1 4 X', 2), ('SM 9 9 9 X', 7),
        ('MED SM 5 5 X 3 MAX 0 1 X 9 X', 2),
    ):
      words = iter(text.split())
      self.assertEqual(evaluate(words), value)
      self.assertEmpty(list(words))


class SampleTest(parameterized.TestCase):

  @parameterized.parameters(
      (Rules(), 2000, 100), (Rules(max_args=3, above=5, below=60), 5000, 100),
      (Rules(max_depth=1, above=0), 20, 20),
  )
  def test_values_and_shapes(self, rules, count, least):
    found = listops_trees.sample(np.random.default_rng(1), count, rules)
    self.assertGreaterEqual(len(found.labels), least)
    self.assertEqual(
        [u.dtype for u in found], [np.uint8, np.int32, np.uint8]
    )
    self.assertBetween(
        found.lengths.min(), rules.above + 1, rules.below - 1
    )
    seen = []
    for words, label in expressions(found):
      rest = iter(words)
      self.assertEqual(evaluate(rest, seen=seen), label)
      self.assertEmpty(list(rest))
    for _, arguments, depth in seen:
      self.assertBetween(arguments, 2, rules.max_args)
      self.assertLess(depth, rules.max_depth)

  def test_no_tree_is_kept(self):
    found = listops_trees.sample(
        np.random.default_rng(0), 50, Rules(max_depth=2, above=500)
    )
    self.assertEqual([len(u) for u in found], [0, 0, 0])

  def test_operators_arguments_and_digits_are_equally_likely(self):
    rules = Rules(max_depth=3, above=0)  # All trees are kept.
    found = listops_trees.sample(np.random.default_rng(2), 40_000, rules)
    self.assertLen(found.labels, 40_000)
    seen = []
    for words, _ in expressions(found):
      evaluate(iter(words), seen=seen)
    names, arguments, depths = zip(*seen)
    at_root = depths.count(1)
    self.assert_share(at_root, 40_000, 0.25)
    self.assert_share(
        depths.count(2), sum(n for _, n, depth in seen if depth == 1), 0.25
    )
    for name in FUNCTIONS:
      self.assert_share(names.count(name), len(seen), 1 / 4)
    for number in range(2, 11):
      self.assert_share(arguments.count(number), len(seen), 1 / 9)
    digits = found.tokens[found.tokens < 10]
    for digit in range(10):
      self.assert_share(np.sum(digits == digit), len(digits), 1 / 10)

  def assert_share(self, count, total, share):
    error = math.sqrt(share * (1 - share) / total)
    self.assertLess(abs(count / total - share), 4.5 * error)

  def test_the_full_rules(self):
    """Against the exact distribution of lengths, and the share that is kept."""
    rules, count = Rules(), 40_000
    exact = listops_exact.lengths(rules)
    kept = exact.copy()
    kept[: rules.above + 1] = 0
    found = listops_trees.sample(np.random.default_rng(3), count, rules)
    self.assert_share(len(found.labels), count, kept.sum())
    # As many trees in each tenth of the lengths that are kept.
    limits = np.searchsorted(
        np.cumsum(kept) / kept.sum(), np.linspace(0, 1, 11)[1:-1]
    )
    counts = np.bincount(
        np.searchsorted(limits, found.lengths), minlength=10
    )
    cumulative = np.cumsum(kept)[[*limits, -1]] / kept.sum()
    for number, share in zip(
        counts, np.diff(cumulative, prepend=0), strict=True
    ):
      self.assert_share(number, len(found.labels), share)


class ExactTest(parameterized.TestCase):

  @parameterized.parameters(
      Rules(max_depth=2, max_args=4, above=2, below=10),
      Rules(max_depth=4, max_args=5, above=4, below=40),
  )
  def test_facts_are_those_of_many_trees(self, rules):
    exact = listops_exact.facts(rules)
    count = 200_000
    found = listops_trees.sample(np.random.default_rng(4), count, rules)
    kept = len(found.labels)
    self.assertLess(
        abs(kept / count - exact.kept), 4.5 * math.sqrt(exact.kept / count)
    )
    self.assertLess(
        abs(found.lengths.mean() - exact.mean),
        4.5 * exact.deviation / math.sqrt(kept),
    )
    self.assertAlmostEqual(found.lengths.std() / exact.deviation, 1, 1)
    self.assertEqual(np.median(found.lengths), exact.median)
    shares = np.bincount(found.labels, minlength=10) / kept
    np.testing.assert_array_less(
        abs(shares - exact.labels), 4.5 * np.sqrt(exact.labels / kept)
    )

  def test_two_ways_to_the_lengths(self):
    rules = Rules(max_depth=4, max_args=5, above=4, below=40)
    np.testing.assert_allclose(
        listops_exact.distribution(rules).sum(0), listops_exact.lengths(rules),
        atol=1e-15,
    )

  def test_one_operator_of_two_digits(self):
    """By hand: all pairs of digits under each operator."""
    rules = Rules(max_depth=2, max_args=2, above=2, below=5)
    counts = np.zeros(10)
    for a in range(10):
      for b in range(10):
        for function in FUNCTIONS.values():
          counts[function([a, b])] += 1
    exact = listops_exact.facts(rules)
    np.testing.assert_allclose(exact.labels, counts / 400, atol=1e-12)
    self.assertAlmostEqual(exact.kept, 0.25)
    self.assertEqual((exact.mean, exact.median), (4, 4))


if __name__ == '__main__':
  absltest.main()
