"""The laws of the six tasks of MAD."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.synthetic import mad


def load(task, batch_size=32, seed=0, **fields):
  config = dict(name='mad', task=task, train_examples=200, eval_examples=64)
  return data.load(config | fields, batch_size=batch_size, seed=seed)


def rows(dataset, split='test'):
  """Yields inputs, targets and mask of each example as lists."""
  for batch in dataset.eval_batches(split):
    for parts in zip(batch['inputs'], batch['targets'], batch['mask']):
      yield tuple(part.tolist() for part in parts)


class MADTest(parameterized.TestCase):

  @parameterized.parameters(
      ('in_context_recall', 16, 0.0), ('noisy_in_context_recall', 32, 0.5)
  )
  def test_recall(self, task, vocab_size, noise_fraction):
    dataset = load(task, sequence_length=40, noise_fraction=noise_fraction)
    noisy, ids = 0, set()
    for inputs, targets, mask in rows(dataset):
      tokens = [*inputs, targets[-1]]
      self.assertLen(tokens, 40)
      ids |= set(tokens)
      self.assertEqual(targets[:-1], inputs[1:])
      value_of, expected = {}, [False] * 39
      for place in range(0, 40, 2):
        key, value = tokens[place : place + 2]
        if key >= 16:  # Noise: both, and neither counts.
          self.assertGreaterEqual(value, 16)
          noisy += 1
          continue
        self.assertLess(key, 8)
        self.assertBetween(value, 8, 15)
        self.assertEqual(value_of.get(key, value), value)
        expected[place] = key in value_of
        value_of[key] = value
      self.assertEqual(mask, expected)
      self.assertTrue(mask[-1])
    self.assertEqual(ids, set(range(vocab_size)))
    pairs = 64 * 18  # Two pairs of each sequence are never noise.
    np.testing.assert_allclose(
        noisy, pairs * noise_fraction, atol=5 * np.sqrt(pairs) / 2
    )

  def test_values_change_between_sequences(self):
    firsts = [dict(zip(i[::2], t[::2]))[0] for i, t, _ in
              rows(load('in_context_recall')) if 0 in i[::2]]
    self.assertEqual(set(firsts), set(range(8, 16)))

  def test_fuzzy_recall(self):
    dataset = load('fuzzy_in_context_recall')
    keys, sizes, unknown = set(), set(), 0
    for inputs, targets, mask in rows(dataset):
      self.assertEqual(targets[:-1], inputs[1:])
      tokens, counts = [*inputs, targets[-1]], [False, *mask]
      while tokens[0] == 15:
        self.assertFalse(counts[0])
        tokens, counts = tokens[1:], counts[1:]
      words, marks = [], []  # Runs of keys (0 to 6) and of values (7 to 14).
      for token, mark in zip(tokens, counts):
        self.assertBetween(token, 0, 14)
        if not words or (words[-1][-1] < 7) != (token < 7):
          words.append(())
          marks.append(())
        words[-1] += (token,)
        marks[-1] += (mark,)
      value_of = {}
      for i in range(0, len(words), 2):
        key, value = words[i : i + 2]
        self.assertLen(set(key), 3)
        self.assertLen(set(value), len(value))
        self.assertEqual(value_of.get(key, value), value)
        self.assertFalse(any(marks[i]))
        is_last = i + 2 == len(words)
        unknown += is_last and key not in value_of
        known = key in value_of or is_last
        self.assertEqual(marks[i + 1], (known,) * len(value))
        value_of[key] = value
        keys.add(key)
        sizes.add(len(value))
    self.assertEqual(sizes, {1, 2, 3})
    self.assertGreater(len(keys), 190)  # Of the 7 * 6 * 5 there are.
    self.assertLess(unknown, 10)  # Of 64.
    train = dataset.train_batch(1)
    self.assertNotIn('mask', train)
    starts = (train['inputs'][:, :-1] >= 7) & (train['inputs'][:, 1:] < 7)
    ends = (train['inputs'][:, :-1] < 7) & (train['inputs'][:, 1:] >= 7)
    lengths = [
        end - start
        for start_row, end_row in zip(starts, ends)
        for start, end in zip(
            np.flatnonzero(start_row),
            np.flatnonzero(end_row)[np.flatnonzero(end_row)
                                    > np.flatnonzero(start_row)[0]],
        )
    ]
    self.assertEqual(set(lengths), {1, 2, 3})

  def test_selective_copying(self):
    before = np.zeros(4)
    for inputs, targets, mask in rows(
        load('selective_copying', sequence_length=30, num_tokens=4)
    ):
      self.assertEqual(inputs[25:], [15, 14, 14, 14, 14])
      content = [token for token in inputs[:25] if token != 14]
      self.assertLen(content, 4)
      self.assertEqual(targets[26:], content)
      self.assertEqual(mask, [False] * 26 + [True] * 4)
      self.assertEqual(targets[:26], [0] * 26)
      self.assertNotEqual(inputs[24], 14)
      places = [i for i, token in enumerate(inputs[:25]) if token != 14]
      before += np.diff([-1, *places]) - 1
    mean = 64 * 21 / 4
    np.testing.assert_allclose(before, mean, atol=5 * np.sqrt(mean))

  def test_memorization(self):
    dataset = load('memorization', vocab_size=20)
    other = load('memorization', vocab_size=20, seed=1)
    train = dataset.train_batch(1)
    seen = []
    examples = zip(
        *(train[name].tolist() for name in ('inputs', 'targets', 'mask'))
    )
    for part in (examples, rows(dataset, 'validation'), rows(other)):
      value_of = {}
      for inputs, targets, mask in part:
        self.assertLen(inputs, 32)
        self.assertEqual(inputs[1::2], [19] * 16)
        self.assertEqual(mask, [False, True] * 16)
        for key, value in zip(inputs[::2], targets[1::2]):
          self.assertEqual(value_of.setdefault(key, value), value)
      self.assertEqual(set(value_of), set(range(9)))
      self.assertLen(set(value_of.values()), 9)
      self.assertContainsSubset(set(value_of.values()), set(range(9, 19)))
      seen.append(value_of)
    self.assertEqual(seen[0], seen[1])
    self.assertNotEqual(seen[0], seen[2])

  def test_compression(self):
    ids = set()
    for inputs, targets, mask in rows(load('compression')):
      self.assertEqual(inputs, targets)
      self.assertLen(inputs, 32)
      self.assertEqual(inputs[-1], 15)
      self.assertTrue(all(mask))
      ids |= set(inputs[:-1])
    self.assertEqual(ids, set(range(15)))

  @parameterized.parameters(
      ('in_context_recall', 127, 16, 12_800, 1 / 8),
      ('noisy_in_context_recall', 127, 32, 12_800, 1 / 8),
      ('fuzzy_in_context_recall', 128, 16, 12_800, 1 / 8),
      ('selective_copying', 256, 16, 12_800, 1 / 14),
      ('memorization', 32, 256, 256, 1 / 128),
      ('compression', 32, 16, 12_800, (31 / 15 + 1) / 32),
  )
  def test_sizes_of_the_suite(self, task, length, vocab_size, count, chance):
    dataset = data.load(dict(name='mad', task=task), batch_size=128, seed=0)
    self.assertEqual(dataset.sequence_length, length)
    self.assertEqual(dataset.vocab_size, vocab_size)
    self.assertAlmostEqual(dataset.baselines()['chance_accuracy'], chance)
    self.assertLen(dataset.eval_batches('test'), 10)
    self.assertEqual(mad.SIZES[task][2], count)

  def test_epochs_and_seeds(self):
    dataset = load('compression')
    epochs = [
        {row.tobytes() for step in range(first, first + 25)
         for row in dataset.train_batch(step)['inputs']}
        for first in (1, 26)
    ]
    self.assertEqual(epochs[0], epochs[1])
    self.assertLen(epochs[0], 200)
    sets = [
        {str(row) for row in rows(load('compression', seed=seed), split)}
        for seed in (0, 1) for split in ('validation', 'test')
    ]
    self.assertLen(set.union(*sets), 4 * 64)
    again = {str(row) for row in rows(load('compression'), 'validation')}
    self.assertEqual(again, sets[0])

  @parameterized.parameters(
      (dict(task='copying'), 'data.task must be one of'),
      (
          dict(task='fuzzy_in_context_recall', sequence_length=12),
          'data.sequence_length must be at least 13 for fuzzy',
      ),
      (
          dict(task='selective_copying', num_tokens=128),
          'at least 258 .* with data.num_tokens=128, got 256',
      ),
      (
          dict(task='memorization', sequence_length=31),
          'must be even for memorization, .* got 31',
      ),
      (
          dict(task='noisy_in_context_recall', vocab_size=16),
          'data.vocab_size must be at least 18 for noisy',
      ),
      (dict(task='compression', noise_fraction=1.0), 'noise_fraction'),
  )
  def test_bad_fields(self, fields, message):
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      load(**fields)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      dict(task='in_context_recall', sequence_length=4, vocab_size=2),
      dict(task='noisy_in_context_recall', sequence_length=4, vocab_size=18),
      dict(task='fuzzy_in_context_recall', sequence_length=13, vocab_size=7),
      dict(task='selective_copying', sequence_length=4, num_tokens=1,
           vocab_size=3),
      dict(task='memorization', sequence_length=4, vocab_size=3),
      dict(task='compression', sequence_length=2, vocab_size=2),
  )
  def test_the_smallest_sizes(self, **fields):
    dataset = load(**fields)
    batch = next(iter(dataset.eval_batches('test')))
    self.assertLess(batch['inputs'].max(), fields['vocab_size'])
    self.assertTrue(batch['mask'].any(1).all())


if __name__ == '__main__':
  absltest.main()
