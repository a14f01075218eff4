"""Arrays in a .npz file, and files that are something else."""

import io
import pathlib
import pickle
import tempfile
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors

X = np.random.default_rng(0).normal(size=(40, 5, 2))
Y = np.arange(40) % 2


class NpzFileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'my.npz'

  def load(self, **fields):
    config = dict(name='npz_file', path=str(self.path)) | fields
    return data.load(config, batch_size=4, seed=0)

  def loaded(self, /, **arrays):
    np.savez(self.path, **arrays)
    return self.load()

  def assert_same(self, dataset, expected):
    self.assertEqual(dataset.source, expected.source)
    for step in (1, 9):
      for key, array in expected.train_batch(step).items():
        np.testing.assert_array_equal(dataset.train_batch(step)[key], array)

  def test_it_is_the_same_as_from_arrays(self):
    lengths = 1 + np.arange(40) % 5
    images = (9 * X[..., None, None] % 256).astype(np.uint8)
    for arrays in (
        dict(x=X, lengths=lengths), dict(x=X, dt=X[..., 0] ** 2), dict(x=images)
    ):
      self.assert_same(
          self.loaded(**arrays, y=Y),
          data.from_arrays(**arrays, y=Y, batch_size=4),
      )
    self.assertEqual(self.load().image_shape, (2, 1, 1))
    dataset = self.loaded(x=X, y=Y, class_names=np.array(['a', 'b']))
    self.assertEqual(dataset.class_names, ('a', 'b'))
    self.assertEqual((dataset.name, dataset.fixture), ('npz_file', False))

  def test_ready_splits(self):
    dataset = self.loaded(
        x_train=X[:20], y_train=Y[:20], x_test=X[20:], y_test=Y[20:],
        lengths_train=np.full(20, 3), lengths_test=np.full(20, 5),
    )
    self.assertEqual(dataset.source['examples']['test'], 20)
    self.assertEqual(
        sum(b['input_mask'][b['mask']].sum()
            for b in dataset.eval_batches('test')), 100
    )
    self.assert_same(dataset, data.from_arrays(
        dict(train=X[:20], test=X[20:]), dict(train=Y[:20], test=Y[20:]),
        lengths=dict(train=np.full(20, 3), test=np.full(20, 5)), batch_size=4,
    ))

  def test_the_task_can_be_chosen(self):
    np.savez(self.path, x=X, y=Y)
    self.assertEqual(self.load().task, 'classification')
    self.assertEqual(self.load(task='regression').task, 'regression')
    with self.assertRaisesRegex(errors.UserValueError, 'data.task must be one'):
      self.load(task='forecast')

  def test_forecasts(self):
    np.savez(self.path, x=X[:, :-1], y=X[:, 1:])
    self.assertTrue(self.load().forecast)
    self.assertFalse(self.load(forecast=False).forecast)
    np.savez(self.path, x=X[:, :-1], y=2 * X[:, 1:])
    self.assertFalse(self.load().forecast)
    self.assertTrue(self.load(forecast=True).forecast)

  @parameterized.named_parameters(
      ('no_y', dict(x=X), 'has no array y, only x'),
      ('typed_wrong', dict(x=X, Y=Y), 'has no array y, only x, Y'),
      ('nearly_lengths', dict(x=X, y=Y, length=Y + 1), 'length, which is not '
       'read. Did you mean "lengths"'),
      ('no_such_split', dict(x_train=X, y_train=Y, x_val=X, y_val=Y),
       'x_val, which is not|y_val, which is not'),
      ('one_name', dict(x=X, y=Y, class_names=np.array('ab')), 'class_names'),
      ('no_x', dict(a=X, y=Y), 'must hold either x and y or x_train.* a, y'),
      ('empty', {}, 'it has no arrays'),
      ('both', dict(x=X, x_train=X, y=Y), 'must hold either'),
      (
          'half_a_split', dict(x_train=X, y_train=Y, x_test=X),
          'has no array y_test, .*Did you mean "x_test"',
      ),
      (
          'half_the_lengths', dict(
              x_train=X, y_train=Y, x_test=X, y_test=Y, lengths_test=Y + 1
          ), 'has no array lengths_train',
      ),
      (
          'half_the_dt', dict(
              x_train=X, y_train=Y, x_test=X, y_test=Y, dt_train=X[..., 0] ** 2
          ), 'has no array dt_test',
      ),
      ('no_train', dict(x_test=X, y_test=Y), 'must have a split "train"'),
      ('nan', dict(x=X * np.nan, y=Y), r'x of train must be finite'),
      ('complex', dict(x=X * 1j, y=Y), 'an array of numbers, got complex'),
      ('lengths', dict(x=X, y=Y, lengths=Y), 'from 1 to 5'),
      ('rows', dict(x=X, y=Y[1:]), 'one row for each of the 40'),
  )
  def test_wrong_arrays(self, arrays, message):
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      self.loaded(**arrays)
    self.assertIn(f'{self.path} (data.path)', str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_objects_are_never_unpickled(self):
    bait = np.array([Bait()], object)
    for write, message in (
        (lambda: np.savez(self.path, x=bait, y=Y), 'objects, which is never'),
        (lambda: self.path.write_bytes(pickle.dumps(Bait())), 'no .npz file'),
        (
            lambda: np.save(self.path.open('wb'), bait, allow_pickle=True),
            'no .npz file',
        ),
    ):
      write()
      with self.assertRaisesRegex(errors.UserValueError, message):
        self.load()
    self.assertEmpty(Bait.loaded)

  def test_files_of_another_kind(self):
    empty = io.BytesIO()
    zipfile.ZipFile(empty, 'w').close()
    text = io.BytesIO()
    with zipfile.ZipFile(text, 'w') as file:
      file.writestr('x.npy', 'no array')
      file.writestr('y.npy', 'no array')
    array = io.BytesIO()
    np.save(array, X)
    for content in (
        b'', b'x,y\n1,2\n', b'PK', empty.getvalue(), text.getvalue(),
        array.getvalue(),
    ):
      self.path.write_bytes(content)
      with self.assertRaises(errors.UserValueError) as caught:
        self.load()
      self.assertIn(f'{self.path} (data.path)', str(caught.exception))
      self.assertNotIn('\n', str(caught.exception))

  def test_damaged_files(self):
    np.savez_compressed(self.path, x=X, y=Y)
    sound = self.path.read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
      content = bytearray(sound)
      if number % 2:
        del content[int(rng.integers(len(sound))) :]
      else:
        content[int(rng.integers(len(sound)))] ^= 1 << int(rng.integers(8))
      self.path.write_bytes(content)
      try:
        dataset = self.load()
      except errors.UserError as error:
        self.assertNotIn('\n', str(error))
      else:  # The bit does not matter.
        self.assertEqual(dataset.sequence_length, 5)

  def test_missing_files(self):
    for path, message in (
        ('', 'data.name=npz_file needs data.path, the name of a .npz file'),
        (str(self.path), 'There is no file .*my.npz'),
    ):
      with self.assertRaisesRegex(errors.UserFileNotFoundError, message):
        self.load(path=path)
    with self.assertRaisesRegex(errors.UserError, 'Is a directory'):
      self.load(path=str(self.path.parent))


class Bait:
  """Says when it is unpickled."""

  loaded = []

  def __reduce__(self):
    return Bait.loaded.append, (True,)


if __name__ == '__main__':
  absltest.main()
