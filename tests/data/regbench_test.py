"""The laws of RegBench."""

import math

from absl.testing import absltest
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data import pipeline
from rnnzoo.data.synthetic import regbench


def load(seed=0, batch_size=8, **fields):
  config = dict(
      name='regbench', letters=6, max_states=5, min_words=3, max_words=4,
      max_word_length=5, train_examples=16, eval_examples=20,
  )
  return data.load(config | fields, batch_size=batch_size, seed=seed)


class RegBenchTest(absltest.TestCase):

  def test_automata(self):
    sizes, edges, letters = set(), set(), set()
    for seed in range(300):
      following = regbench.automaton(np.random.default_rng(seed), 12, 18)
      self.assertEqual(following.shape[1], 18)
      sizes.add(len(following))
      used = {int(letter) for letter in np.nonzero(following >= 0)[1]}
      letters |= used
      for state, row in enumerate(following):
        targets = row[row >= 0].tolist()
        edges.add(len(targets))
        self.assertLen(set(targets), len(targets))
        self.assertNotIn(state, targets)
        self.assertLess(max(targets), len(following))
    self.assertEqual(sizes, set(range(4, 13)))
    self.assertEqual(edges, {1, 2, 3})
    self.assertEqual(letters, set(range(18)))

  def test_words_follow_their_automaton(self):
    words, lengths = set(), set()
    for seed in range(50):
      sizes = (5, 6, 3, 4, 5)
      make = lambda: pipeline.generator(seed, 'train', 0)
      tokens, _, table = regbench.example(make(), *sizes)
      following = regbench.automaton(make(), 5, 6)  # The same draws.
      count = 1 + int(np.sum(tokens == 7))
      words.add(count)
      for part in ' '.join(map(str, tokens)).split(' 7 '):
        state, letters = 0, [int(token) - 1 for token in part.split()]
        lengths.add(len(letters))
        for letter in letters:
          possible = [i for i, to in enumerate(following[state]) if to >= 0]
          self.assertIn(letter, possible)
          expected = [0.0] * 8
          for i in possible:
            expected[i + 1] = 1 / len(possible)
          np.testing.assert_allclose(table[state], expected, rtol=1e-6)
          state = following[state][letter]
    self.assertEqual(words, {3, 4})
    self.assertEqual(lengths, {1, 2, 3, 4, 5})

  def test_letters_have_their_probabilities(self):
    following = np.array([[1, -1, 1], [0, 0, -1]])
    letters, _ = regbench.word(np.random.default_rng(0), following, 4000)
    counts = np.bincount(letters[::2], minlength=3)
    np.testing.assert_allclose(counts, [1000, 0, 1000], atol=5 * 22.4)

  def test_batches(self):
    dataset = load()
    self.assertEqual(dataset.sequence_length, 4 * 6 - 2)
    self.assertEqual(dataset.vocab_size, 8)
    logs, best = [], []
    for batch in dataset.eval_batches('test'):
      for inputs, targets, mask, true in zip(*(
          batch[name].tolist()
          for name in ('inputs', 'targets', 'mask', 'probabilities')
      )):
        if not any(mask):
          continue
        self.assertEqual(targets[:-1], inputs[1:])
        for target, counts, row in zip(targets, mask, true):
          self.assertEqual(counts, 1 <= target <= 6)
          self.assertEqual(sum(row) > 0, counts)
          if counts:
            self.assertAlmostEqual(sum(row), 1, places=5)
            logs.append(-math.log(row[target]))
            best.append(max(row))
    found = dataset.baselines()
    self.assertAlmostEqual(found['best_possible_loss'], np.mean(logs), 5)
    self.assertAlmostEqual(found['best_possible_accuracy'], np.mean(best), 5)

  def test_the_programs_sizes_are_the_defaults(self):
    dataset = data.load(dict(name='regbench'), batch_size=2, seed=0)
    self.assertEqual(dataset.sequence_length, 19 * 50 - 2)
    self.assertEqual(dataset.vocab_size, 20)
    self.assertLen(dataset.eval_batches('test'), 125)

  def test_epochs_and_seeds(self):
    dataset = load()
    epochs = [
        {row.tobytes() for step in (first, first + 1)
         for row in dataset.train_batch(step)['inputs']}
        for first in (1, 3)
    ]
    self.assertEqual(epochs[0], epochs[1])
    self.assertLen(epochs[0], 16)
    first = lambda seed, split: load(seed).eval_batches(split)[0]['inputs']
    self.assertTrue((first(0, 'test') != first(1, 'test')).any())
    self.assertTrue((first(0, 'test') != first(0, 'validation')).any())
    np.testing.assert_array_equal(first(0, 'test'), first(0, 'test'))

  def test_bad_fields(self):
    for fields, message in (
        (dict(min_words=5), 'data.min_words=5 is larger than data.max_words=4'),
        # A sequence of one letter has no target.
        (dict(min_words=1), 'data.min_words must be at least 2'),
        (dict(letters=3), 'data.letters must be at least 4'),
        (dict(max_states=3), 'data.max_states must be at least 4'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        load(**fields)


if __name__ == '__main__':
  absltest.main()
