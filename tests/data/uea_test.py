"""The UEA archive: its `.ts` files, and files of published splits."""

import importlib.util
import os
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.series import ts_file
from rnnzoo.data.series import uea

HEAD = '@timeStamps false\n@dimensions 2\n@classLabel true a b\n@data\n'


def rows(dataset, split):
  """Returns the inputs, targets and lengths of a split."""
  found = []
  for batch in dataset.eval_batches(split):
    steps = batch.get('input_mask', np.ones(batch['inputs'].shape[:2]))
    found += [
        (batch['inputs'][i], int(batch['targets'][i]), int(steps[i].sum()))
        for i in np.flatnonzero(batch['mask'])
    ]
  return tuple(map(np.array, zip(*found)))


class TsFileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory, 'X_TRAIN.ts')

  def read(self, text):
    self.path.write_text(text)
    return ts_file.read(self.path)

  def test_unequal_lengths_and_missing_numbers(self):
    found = self.read(
        '# A comment: it has colons.\n@PROBLEMNAME X\n@timestamps False\n\n'
        '@classLabel true b a\n@DATA\n'
        '1,2.5,-3e1:4,5,6:a\n'
        '\n'
        '?,?,1,?,2:7, ? ,8,9,?:b\n'  # Gaps in both channels.
        '1,2,?,?:5,?,?,?:b\n'  # Two steps of neither.
        '1,2,3:4:a\n'  # A channel that ends before the other.
        '?,?:1,2:a\n'
    )
    expected = [
        [[1, 4], [2.5, 5], [-30, 6]],
        [[1, 7], [1, 7], [1, 8], [1, 9], [2, 9]],
        [[1, 5], [2, 5]],
        [[1, 4], [2, 4], [3, 4]],
        [[0, 1], [0, 2]],
    ]
    self.assertLen(found.series, len(expected))
    for series, values in zip(found.series, expected):
      np.testing.assert_array_equal(series, values)
    self.assertEqual(found.labels, ['a', 'b', 'b', 'a', 'a'])
    self.assertEqual(found.class_names, ('b', 'a'))

  @parameterized.parameters(
      ('', 'it has no line @data'),
      ('x,y\n1,2\n', 'it has no line @data'),
      (HEAD, 'has no series'),
      (HEAD.replace('false', 'true') + '(0,1):(0,1):a\n', 'has time stamps'),
      (HEAD.replace('@classLabel true a b', '@targetLabel true') + '1:2:3\n',
       'has no classes'),
      (HEAD + '1,2:3,4:a\n1,2:3,4:c\n', "line 6: the label .* a, b, got 'c'"),
      (HEAD + '1,2:3,4:a\n1,2:3,', 'line 6: 1 channels and a label expected'),
      (HEAD + '1,2:3,4:a\n1,2:3,4', 'line 6: 1 channels and a label expected'),
      (HEAD + '1,2:3,four:a\n', "line 5: could not convert .* 'four'"),
      (HEAD + '1,inf:3,4:a\n', 'line 5: an infinite number'),
      (HEAD + '?,?:?:a\n', 'line 5: a series without numbers'),
      (HEAD.replace('@dimensions 2\n', '') + '1:2:a\n1:a\n',
       'line 5: a series of 1 channels; the first one has 2'),
  )
  def test_bad_files(self, text, message):
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      self.read(text)
    self.assertIn(str(self.path), str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))


class PublishedTest(parameterized.TestCase):
  """Problems in a `.npz` file; `x` names the series and the step."""

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    number, step = np.meshgrid(np.arange(30), np.arange(5), indexing='ij')
    order = np.random.default_rng(0).permutation(30)
    self.parts = {
        2345: (order[:4], order[4:10]), 3456: (order[10:14], order[14:20]),
    }
    self.arrays = dict(
        x=np.stack([number, step], -1).astype(np.float32), y=np.arange(30) % 3,
        **{f'test_{seed}': parts[0] for seed, parts in self.parts.items()},
        **{f'val_{seed}': parts[1] for seed, parts in self.parts.items()},
    )

  def load(self, seed=0, **fields):
    np.savez(self.directory / 'Small.npz', **self.arrays)
    config = dict(name='uea', problem='Small', path=str(self.directory))
    return data.load(config | fields, batch_size=4, seed=seed)

  @parameterized.parameters(
      (0, 0, 2345), (1, 0, 3456), (2, 0, 2345), (0, 3456, 3456),
      (1, 2345, 2345),
  )
  def test_the_split_of_a_seed(self, seed, split_seed, expected):
    dataset = self.load(seed, split_seed=split_seed)
    test, validation = self.parts[expected]
    for split, index in (('test', test), ('validation', validation)):
      x, y, _ = rows(dataset, split)
      np.testing.assert_array_equal(x[:, 0, 1], index)
      np.testing.assert_array_equal(y, index % 3)
    trained = {
        int(x) for step in range(1, 6)  # An epoch.
        for x in dataset.train_batch(step)['inputs'][:, 0, 1]
    }
    self.assertEqual(trained, set(range(30)) - {*test, *validation})
    self.assertEqual((dataset.num_classes, dataset.in_features), (3, 3))

  def test_time_is_the_first_channel(self):
    x, _, _ = rows(self.load(), 'test')
    np.testing.assert_allclose(x[:, :, 0], [[0, 0.2, 0.4, 0.6, 0.8]] * 4)
    np.testing.assert_allclose(x[:, :, 2], [[0, 1, 2, 3, 4]] * 4)
    without, _, _ = rows(self.load(time=False), 'test')
    np.testing.assert_array_equal(without, x[:, :, 1:])

  def test_where_the_file_is(self):
    expected = self.load().source
    for fields in (
        dict(path=str(self.directory / 'Small.npz')),
        dict(path='', data_dir=str(self.directory)),
    ):
      folder = self.directory / 'uea'
      folder.mkdir(exist_ok=True)
      np.savez(folder / 'Small.npz', **self.arrays)
      self.assertEqual(self.load(**fields).source, expected)
    with self.assertRaisesRegex(errors.UserValueError, 'is the file Small.npz'):
      self.load(problem='Other', path=str(self.directory / 'Small.npz'))
    for problem, message in (
        ('Other', 'no Other.npz and no Other_TRAIN.ts .*timeseriesclassif'),
        ('BasicMotions', 'pip install --no-deps aeon'),
    ):
      with self.assertRaisesRegex(errors.UserFileNotFoundError, message):
        self.load(problem=problem)

  @parameterized.parameters(
      (dict(test_2345=np.arange(30)), {}, 'must be different indices'),
      (dict(test_2345=np.array([99])), {}, 'must be different indices'),
      (dict(test_2345=np.array([0.5])), {}, 'must be different indices'),
      (dict(y=np.arange(3)), {}, 'must be different indices'),
      (dict(test_2345=np.array([[0, 1]])), {}, 'must be different indices'),
      (dict(x=np.zeros(30)), {}, r'x \[N, T, D\] and y \[N\], got .* \[30\]'),
      (dict(y=np.array(3)), {}, r'x \[N, T, D\] and y \[N\], got .* and \[\]'),
      ({}, dict(split_seed=7), 'must be one of 2345, 3456, or 0, got 7'),
      (dict(x=np.full((30, 5, 2), np.nan)), {}, 'Small.npz: .*finite'),
  )
  def test_bad_arrays(self, arrays, fields, message):
    self.arrays |= arrays
    with self.assertRaisesRegex(errors.UserValueError, message):
      self.load(**fields)

  def test_missing_arrays(self):
    for names in (('val_2345',), ('x',), ('test_2345', 'test_3456')):
      kept = self.arrays
      self.arrays = {k: v for k, v in kept.items() if k not in names}
      with self.assertRaisesRegex(errors.UserValueError, 'Small.npz'):
        self.load()
      self.arrays = kept


class OfficialTest(absltest.TestCase):
  """Problems in two `.ts` files."""

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    self.write('TRAIN', range(40))
    self.write('TEST', range(40, 60))

  def write(self, part, numbers, names='a b'):
    lines = ['@dimensions 2', f'@classLabel true {names}', '@data']
    for n in numbers:  # Of 3 to 7 steps.
      channel = ','.join([str(n)] * (3 + n % 5))
      lines.append(f'{channel}:{channel}:{"ab"[n % 2]}')
    (self.directory / f'Small_{part}.ts').write_text('\n'.join(lines))

  def load(self, seed=0, **fields):
    config = dict(name='uea', problem='Small', path=str(self.directory))
    return data.load(config | fields, batch_size=4, seed=seed)

  def test_parts(self):
    dataset = self.load()
    x, y, lengths = rows(dataset, 'test')
    numbers = np.arange(40, 60)
    np.testing.assert_array_equal(x[:, 0, 1], numbers)
    np.testing.assert_array_equal(y, numbers % 2)
    np.testing.assert_array_equal(lengths, 3 + numbers % 5)
    self.assertEqual(dataset.class_names, ('a', 'b'))
    for row, length in zip(x, lengths):
      np.testing.assert_allclose(row[:length, 0], np.arange(length) / 7)
      self.assertFalse(row[length:].any())
    held, y, _ = rows(dataset, 'validation')
    self.assertLess(held[:, 0, 1].max(), 40)
    # 0.15 / 0.85 of 40 series, with the same share of each class.
    self.assertEqual(sorted(np.bincount(y)), [3, 4])
    self.assertEqual(dataset.source['examples']['train'], 33)
    # The seed of the run chooses no split.
    np.testing.assert_array_equal(rows(self.load(1), 'validation')[0], held)

  def test_bad_use(self):
    with self.assertRaisesRegex(errors.UserValueError, 'Leave it at 0'):
      self.load(split_seed=2345)
    self.write('TEST', range(40, 60), 'a b c')
    with self.assertRaisesRegex(errors.UserValueError, 'different classes'):
      self.load()
    (self.directory / 'Small_TEST.ts').unlink()
    with self.assertRaisesRegex(errors.UserFileNotFoundError, 'Small_TEST.ts'):
      self.load()


class RealTest(parameterized.TestCase):

  @parameterized.parameters(
      ('BasicMotions', (40, 40), 100, 6, 4),
      ('JapaneseVowels', (270, 370), 29, 12, 9),
  )
  def test_what_aeon_brings(self, problem, sizes, steps, channels, classes):
    if not importlib.util.find_spec('aeon'):
      self.skipTest('aeon is not installed')
    dataset = data.load(
        dict(name='uea', problem=problem), batch_size=8, seed=0
    )
    examples = dataset.source['examples']
    self.assertEqual(
        (examples['train'] + examples['validation'], examples['test']), sizes
    )
    self.assertEqual(
        (dataset.sequence_length, dataset.in_features, dataset.num_classes),
        (steps, 1 + channels, classes),
    )

  @parameterized.parameters(
      ('SelfRegulationSCP1', (298, 84, 85), 896, 6, 2),
      ('SelfRegulationSCP2', (197, 57, 57), 1152, 7, 2),
      ('EthanolConcentration', (290, 79, 79), 1751, 2, 4),
  )
  def test_published_splits(self, problem, sizes, steps, channels, classes):
    folder = pathlib.Path(os.environ.get('RNNZOO_DATA_DIR') or '.')
    places = [folder / uea.NAME, folder.parent / uea.NAME]
    found = [u for u in places if (u / f'{problem}.npz').exists()]
    if not found:
      self.skipTest('There is no folder uea in or beside RNNZOO_DATA_DIR')
    for seed in uea.SPLIT_SEEDS:
      dataset = data.load(
          dict(
              name='uea', problem=problem, path=str(found[0]), split_seed=seed
          ), batch_size=8, seed=0,
      )
      self.assertEqual(tuple(dataset.source['examples'].values()), sizes)
      self.assertEqual(
          (dataset.sequence_length, dataset.in_features, dataset.num_classes),
          (steps, 1 + channels, classes),
      )


if __name__ == '__main__':
  absltest.main()
