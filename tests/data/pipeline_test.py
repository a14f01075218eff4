"""Batches depend on seed and step alone, however many processes share them."""

import itertools
import subprocess
import sys
import threading

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data import pipeline

TASKS = {
    'windows': {'name': 'python_docs', 'sequence_length': 32},
    'bytes': {'name': 'python_docs', 'sequence_length': 32, 'level': 'byte'},
    'streams': {
        'name': 'python_docs', 'sequence_length': 32, 'contiguous': True,
    },
    'copying': {
        'name': 'selective_copying', 'sequence_length': 20, 'num_tokens': 4,
        'eval_examples': 30,
    },
}
EACH_TASK = tuple((name, name) for name in TASKS)


def load(task, seed=0, index=0, count=1, batch_size=8):
  return data.load(
      TASKS[task],
      batch_size=batch_size,
      seed=seed,
      process_index=index,
      process_count=count,
  )


def assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def join(batches):
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


class PurityTest(parameterized.TestCase):

  @parameterized.named_parameters(*EACH_TASK)
  def test_a_batch_is_a_function_of_seed_and_step(self, task):
    dataset, again = load(task, seed=3), load(task, seed=3)
    far = 10**9
    expected = {step: dataset.train_batch(step) for step in (far, 7, 1)}
    for step in (1, 7, far):
      assert_same(again.train_batch(step), expected[step])
    inputs = expected[1]['inputs']
    self.assertTrue((inputs != expected[7]['inputs']).any())
    if task != 'streams':  # The first of which is where the text begins.
      other = load(task, seed=4).train_batch(1)
      self.assertTrue((inputs != other['inputs']).any())

  @parameterized.named_parameters(*EACH_TASK)
  def test_iterator_starts_anywhere(self, task):
    dataset = load(task)
    for start in (1, 5, 10**9):
      iterator = dataset.train_iterator(start)
      for step in range(start, start + 6):
        assert_same(next(iterator), dataset.train_batch(step))
      iterator.close()

  @parameterized.named_parameters(*EACH_TASK)
  def test_batches_have_the_promised_form(self, task):
    dataset = load(task)
    train = dataset.train_batch(2)
    batches = list(dataset.eval_batches('test'))
    self.assertIn('mask', batches[0])
    for batch in [train, *batches]:
      for key, array in batch.items():
        self.assertEqual(array.shape, (8, dataset.sequence_length))
        ids = key in ('inputs', 'targets')
        self.assertEqual(array.dtype, np.int32 if ids else np.bool_)
      for key in ('inputs', 'targets'):
        self.assertBetween(batch[key].min(), 0, dataset.vocab_size - 1)
        self.assertBetween(batch[key].max(), 0, dataset.vocab_size - 1)


class ShardTest(parameterized.TestCase):

  @parameterized.named_parameters(*EACH_TASK)
  def test_the_global_batch_does_not_depend_on_the_processes(self, task):
    whole = load(task)
    for count in (2, 8):
      parts = [load(task, index=i, count=count) for i in range(count)]
      for step in (1, 2, 1001):
        batches = [part.train_batch(step) for part in parts]
        self.assertLen(batches[0]['inputs'], 8 // count)
        assert_same(join(batches), whole.train_batch(step))
      for split in whole.eval_splits:
        rows = [list(part.eval_batches(split)) for part in parts]
        for *batches, expected in zip(
            *rows, whole.eval_batches(split), strict=True
        ):
          assert_same(join(batches), expected)

  @parameterized.named_parameters(*EACH_TASK)
  def test_rows_that_are_not_side_by_side(self, task):
    whole, mine = load(task), load(task, index=(1, 2), count=4)
    rows = slice(2, 6)
    for step in (1, 5):
      expected = whole.train_batch(step)
      assert_same(
          mine.train_batch(step), {k: v[rows] for k, v in expected.items()}
      )
    iterator = mine.train_iterator(5)
    assert_same(next(iterator), mine.train_batch(5))
    iterator.close()
    assert_same(
        mine.eval_batches('validation')[0],
        {k: v[rows] for k, v in whole.eval_batches('validation')[0].items()},
    )

  def test_a_batch_of_one_row(self):
    # The number of batches is then the number of examples, which must still
    # be one that `len` can return.
    for task in TASKS:
      iterator = load(task, batch_size=1).train_iterator()
      self.assertLen(next(iterator)['inputs'], 1)
      iterator.close()

  def test_shuffled_epochs_are_permutations(self):
    batches = pipeline.Shard(4).shuffled(12, seed=1)
    numbers = np.concatenate([batches[i] for i in range(6)]).reshape(2, 12)
    np.testing.assert_array_equal(np.sort(numbers), [np.arange(12)] * 2)
    self.assertTrue((numbers[0] != numbers[1]).any())

  def test_bad_arguments(self):
    for arguments, message in (
        (dict(batch_size=8, count=3), 'batch_size=8 for 3 processes'),
        (dict(batch_size=0), 'batch_size must be a positive integer, got 0'),
        (dict(batch_size=2.0), 'batch_size must be a positive integer'),
        (dict(index=2, count=2), r'process_index must be in \[0, 2\), got 2'),
        (dict(seed=-1), r'seed must be an integer in \[0, 2\*\*32\), got -1'),
        (dict(seed=2**32), 'seed must be an integer'),
    ):
      for task in TASKS:
        with (
            self.subTest(message, task=task),
            self.assertRaisesRegex(errors.UserValueError, message),
        ):
          load(task, **arguments)


class DatasetTest(parameterized.TestCase):

  def test_evaluation_can_be_repeated_and_indexed(self):
    batches = load('copying').eval_batches('validation')
    self.assertLen(batches, 4)
    first, second = list(batches), list(batches)
    for a, b in zip(first, second, strict=True):
      assert_same(a, b)
    assert_same(batches[-1], first[3])
    self.assertLen(list(batches[:2]), 2)
    with self.assertRaises(IndexError):
      _ = batches[4]

  def test_bad_steps(self):
    dataset = load('copying')
    for step in (0, -1, 1.0, True):
      with self.assertRaisesRegex(ValueError, 'step must be an integer'):
        dataset.train_batch(step)
      with self.assertRaisesRegex(ValueError, 'step must be an integer'):
        dataset.train_iterator(step)

  def test_unknown_split(self):
    with self.assertRaisesRegex(
        errors.UserValueError, 'has validation, test. Did you mean "test"'
    ):
      load('copying').eval_batches('tests')

  def test_unknown_name(self):
    with self.assertRaisesRegex(
        errors.UserValueError,
        "no data set 'tiny_shakespear'.*python_docs.*Did you mean "
        '"tiny_shakespeare"',
    ):
      data.load({'name': 'tiny_shakespear'}, batch_size=1, seed=0)
    with self.assertRaisesRegex(errors.UserValueError, 'data.name must be'):
      data.load({}, batch_size=1, seed=0)

  def test_bad_fields(self):
    for fields, message in (
        ({'sequence_length': 0}, 'data.sequence_length .* got 0'),
        ({'sequence_length': '8'}, "data.sequence_length .* got '8'"),
        (
            {'level': 'chars'},
            'char, byte, bpe, got \'chars\'. Did you mean "char"',
        ),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        data.load({'name': 'python_docs'} | fields, batch_size=1, seed=0)

  def test_a_program_ends_with_iterators_open(self):
    program = """if True:
        import sys
        from rnnzoo import data
        fields = {'name': 'python_docs', 'sequence_length': 16}
        dataset = data.load(fields, batch_size=4, seed=0)
        iterators = [dataset.train_iterator(step) for step in (1, 2)]
        for iterator in iterators:
          print(next(iterator)['inputs'].shape)
        loaded = {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)
        sys.exit(f'{loaded} was loaded' if loaded else 0)
    """
    ended = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True, text=True, timeout=60,
    )
    self.assertEqual(ended.returncode, 0, ended.stderr)
    self.assertEqual(ended.stdout, '(4, 16)\n' * 2)
    self.assertEmpty(ended.stderr)

  def test_iterators_start_no_threads(self):
    # They would take the interpreter lock from the training loop.
    before = set(threading.enumerate())
    iterator = load('copying').train_iterator()
    list(itertools.islice(iterator, 3))
    self.assertEqual(set(threading.enumerate()), before)
    iterator.close()


if __name__ == '__main__':
  absltest.main()
