"""What holds for every data set, those of a fixture included."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data import settings
from rnnzoo.data.synthetic import mad

# Small sizes, and forms of a data set that have code of their own.
CASES = {
    'aan': dict(name='aan', sequence_length=50),
    'adding': dict(name='adding', eval_examples=30),
    'adding_of_one_length': dict(
        name='adding', min_length=12, max_length=12, eval_examples=30
    ),
    'cifar10': dict(name='cifar10'),
    'cifar10_rgb': dict(name='cifar10', color='rgb'),
    'cifar10_rows': dict(name='cifar10', color='rgb', sequence='rows'),
    'copying': dict(name='copying', eval_examples=30),
    'csv_file': dict(name='csv_file', sequence_length=24, horizon=6),
    'csv_file_ahead': dict(
        name='csv_file', sequence_length=24, horizon=6, targets=('load',),
        ahead=('price',),
    ),
    'd4rl': dict(name='d4rl', sequence_length=8),
    'csv_file_irregular': dict(
        name='csv_file', sequence_length=24, horizon=6, irregular=True
    ),
    'digits': dict(name='digits'),
    'digits_rows': dict(name='digits', sequence='rows'),
    'enwik8': dict(name='enwik8', sequence_length=32),
    'ett': dict(name='ett', sequence_length=24, horizon=6),
    'events_csv': dict(name='events_csv', sequence_length=16),
    'formal_language': dict(
        name='formal_language', language='bucket_sort', eval_examples=30,
        test_lengths=(50,), test_examples=10,
    ),
    'group_word': dict(
        name='group_word', eval_examples=30, test_lengths=(40,),
        test_examples=10,
    ),
    'hawkes': dict(
        name='hawkes', duration=8.0, sequence_length=12, train_examples=40,
        eval_examples=30,
    ),
    'imdb': dict(name='imdb', sequence_length=50),
    'imdb_published': dict(
        name='imdb', sequence_length=50, validation='test', append_eos=False
    ),
    'induction_heads': dict(
        name='induction_heads', eval_examples=30, test_lengths=(64,),
        test_examples=10,
    ),
    'listops': dict(name='listops', max_length=24),
    'listops_release': dict(name='listops', source='release', max_length=24),
    **{
        f'mad_{task}': dict(
            name='mad', task=task, train_examples=40, eval_examples=30
        )
        for task in mad.SIZES
    },
    'moving_mnist': dict(
        name='moving_mnist', sequence_length=3, horizon=2, size=20,
        digit_size=14, eval_examples=10,
    ),
    'mqar': dict(name='mqar', eval_examples=30),
    'needle': dict(
        name='needle', sequence_length=800, eval_examples=10,
        test_lengths=(900,), test_examples=10,
    ),
    'npz_file': dict(name='npz_file'),
    'npz_file_buckets': dict(name='npz_file', buckets=3),
    'passkey': dict(
        name='passkey', sequence_length=400, eval_examples=10,
        test_lengths=(500,), test_examples=10,
    ),
    'pathfinder': dict(name='pathfinder'),
    'pathfinder_release': dict(name='pathfinder', source='release'),
    'python_docs': dict(name='python_docs', sequence_length=400),
    'regbench': dict(
        name='regbench', max_words=11, train_examples=40, eval_examples=30
    ),
    'selective_copying': dict(
        name='selective_copying', sequence_length=20, num_tokens=4,
        eval_examples=30,
    ),
    'smnist': dict(name='smnist'),
    'smnist_permuted': dict(name='smnist', permutation='bit_reversal'),
    'smnist_rows': dict(name='smnist', sequence='rows'),
    'speech_commands': dict(name='speech_commands', words=10, rate=8000),
    'text8': dict(name='text8', sequence_length=32),
    'text_bpe': dict(
        name='text_file', sequence_length=32, level='bpe', bpe_size=300
    ),
    'text_documents': dict(
        name='text_file', sequence_length=32, separator='\n'
    ),
    'text_file': dict(name='text_file', sequence_length=32),
    'text_streams': dict(
        name='text_file', sequence_length=32, contiguous=True
    ),
    'tiny_shakespeare': dict(name='tiny_shakespeare', sequence_length=32),
    'trajectories': dict(name='trajectories', sequence_length=8),
    # Without the seed of the split, it goes with that of the run.
    'uea': dict(name='uea', split_seed=2345),
    'uea_ts': dict(name='uea', problem='JapaneseVowels', time=False),
}
EACH = tuple((name, config) for name, config in CASES.items())
ROWS = 8


def join(batches):
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


class EverySetTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(
        cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    for name, definition in data.DATASETS.items():
      if definition.write_fixture:
        definition.write_fixture(cls.directory, dict(name=name))

  def load(self, config, index=0, count=1, seed=0):
    config = config | {'data_dir': str(self.directory)}
    return data.load(
        config, batch_size=ROWS, seed=seed, process_index=index,
        process_count=count,
    )

  def assert_same(self, a, b):
    self.assertEqual(a.keys(), b.keys())
    for key in a:
      self.assertEqual(a[key].dtype, b[key].dtype)
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)

  def test_there_is_a_case_of_every_set(self):
    self.assertEqual(
        {config['name'] for config in CASES.values()}, set(data.DATASETS)
    )

  @parameterized.named_parameters(*EACH)
  def test_batches_have_the_form_that_the_attributes_promise(self, config):
    dataset = self.load(config)
    definition = data.find(config['name'])
    is_autoencoder = config.get('task') == 'compression'
    self.assertEqual(
        dataset.task, 'autoencoding' if is_autoencoder else definition.task
    )
    self.assertEqual(dataset.fixture, definition.write_fixture is not None)
    self.assertEqual(dataset.batch_size, ROWS)
    self.assertIn(
        dataset.unit,
        ('characters', 'bytes', 'tokens', 'pixels', 'rows', 'frames', 'events',
         'time steps'),
    )
    self.assertContainsSubset(('validation', 'test'), dataset.eval_splits)
    kinds = dataset.vocab_size, dataset.in_features, dataset.image_shape
    self.assertEqual(sum(map(bool, kinds)), 1)
    self.assertEqual(
        dataset.out_features > 0,
        dataset.task in ('regression', 'forecasting', 'decisions'),
    )
    self.assertEqual(
        dataset.horizon > 0, dataset.task in ('forecasting', 'video')
    )
    self.assertEqual(
        dataset.num_classes > 0, dataset.task in ('classification', 'matching')
    )

    def form_of(length, inputs):
      small = inputs.dtype in (np.uint8, np.int8, np.uint16, np.int16)
      steps = (ROWS, length)
      pairs = (2,) * (dataset.task == 'matching')
      form = dict(
          inputs=((*steps, *pairs), inputs.dtype if small else np.int32)
      )
      if not dataset.vocab_size:
        form['inputs'] = (
            (*steps, *(dataset.image_shape or (dataset.in_features,))),
            inputs.dtype if small else np.float32,
        )
      shape = steps if dataset.per_step else steps[:1]
      form['targets'] = (shape, np.int32)
      if dataset.out_features:
        steps_ahead = (dataset.horizon,) * bool(dataset.horizon)
        form['targets'] = (
            (*shape, *steps_ahead, dataset.out_features), np.float32
        )
      if dataset.task == 'video':
        form['targets'] = (
            (ROWS, dataset.horizon, *dataset.image_shape), inputs.dtype
        )
      form['future'] = (
          (ROWS, dataset.horizon, dataset.future_features), np.float32
      )
      form['probabilities'] = ((*steps, dataset.vocab_size), np.float32)
      for gaps in ('gaps', 'target_gaps', 'true_log_likelihood'):
        form[gaps] = (steps, np.float32)
      form['mask'] = (shape, np.bool_)
      form['dt'] = (steps, np.float32)
      form['input_mask'] = ((*steps, *pairs), np.bool_)
      form['reset'] = (steps, np.bool_)
      return form

    train = dataset.train_batch(3)
    evaluated = [
        (dataset.split_lengths.get(split, dataset.sequence_length), batch)
        for split in dataset.eval_splits
        for batch in dataset.eval_batches(split)
    ]
    for length, batch in [(dataset.sequence_length, train), *evaluated]:
      inputs = batch['inputs']
      if dataset.buckets:
        length = inputs.shape[1]
        self.assertIn(length, dataset.buckets)
      form = form_of(length, inputs)
      self.assertContainsSubset(batch, form)
      for key, array in batch.items():
        self.assertEqual((array.shape, array.dtype), form[key], key)
        self.assertTrue(np.isfinite(array).all())
      self.assertEqual('input_mask' in batch, 'input_mask' in train)
      largest = dataset.num_classes or dataset.vocab_size
      if not dataset.out_features and not dataset.image_shape:
        self.assertBetween(batch['targets'].min(), 0, largest - 1)
      if dataset.vocab_size:
        self.assertBetween(batch['inputs'].min(), 0, dataset.vocab_size - 1)
    self.assertEqual(
        'reset' in train, dataset.contiguous or 'separator' in config
    )
    are_later_inputs = False
    if dataset.per_step:
      later, goals = train['inputs'][:, 1:], train['targets'][:, :-1]
      if dataset.task == 'decisions':  # An action is a part of the next input.
        exists = train['input_mask'][:, 1:, None]
        later = np.where(exists, later[..., -1 - dataset.out_features:-1], 0)
        goals = np.where(exists, goals, 0)
      are_later_inputs = np.array_equal(goals, later)
    self.assertEqual(dataset.forecast, are_later_inputs)
    for _, batch in evaluated:
      self.assertIn('mask', batch)
      self.assertTrue(batch['mask'].any())
    self.assertTrue(all(
        isinstance(value, float) for value in dataset.baselines().values()
    ))

  @parameterized.named_parameters(*EACH)
  def test_a_run_resumes_at_any_step(self, config):
    dataset, again = self.load(config, seed=5), self.load(config, seed=5)
    for start in (1, 7, 10**9):
      iterator = dataset.train_iterator(start)
      for step in range(start, start + 3):
        self.assert_same(next(iterator), again.train_batch(step))
      iterator.close()
    other = self.load(config, seed=6)
    for split in dataset.eval_splits:
      first = dataset.eval_batches(split)[0]
      if 'generator' not in dataset.source:
        self.assert_same(first, other.eval_batches(split)[0])
    if not dataset.contiguous:  # The first step begins at the beginning.
      first, second = dataset.train_batch(1), other.train_batch(1)
      self.assertTrue(any(  # Events of one type differ in their gaps only.
          (first[name] != second[name]).any()
          for name in ('inputs', 'gaps') if name in first
      ))

  @parameterized.named_parameters(*EACH)
  def test_the_parts_of_all_processes_make_one_batch(self, config):
    whole = self.load(config)
    for count in (2, 8):
      parts = [self.load(config, index=i, count=count) for i in range(count)]
      for step in (1, 1001):
        batches = [part.train_batch(step) for part in parts]
        self.assert_same(join(batches), whole.train_batch(step))
      rows = [list(part.eval_batches('test')) for part in parts]
      for *batches, expected in zip(
          *rows, whole.eval_batches('test'), strict=True
      ):
        self.assert_same(join(batches), expected)
    some = self.load(config, index=(1, 2), count=4).train_batch(5)
    expected = {k: v[2:6] for k, v in whole.train_batch(5).items()}
    self.assert_same(some, expected)


class FixtureTest(parameterized.TestCase):

  @parameterized.parameters(*(
      name for name, definition in data.DATASETS.items()
      if definition.write_fixture
  ))
  def test_it_takes_the_place_of_missing_data(self, name):
    directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    definition = data.find(name)
    for path in ('', str(directory / 'absent' / 'my.dat')):
      config = dict(name=name, data_dir=str(directory / 'real'))
      if 'path' in definition.fields:
        config['path'] = path
      with self.assertRaises(errors.UserFileNotFoundError) as caught:
        data.load(config, batch_size=4, seed=0)
      self.assertNotIn('\n', str(caught.exception))
      place = directory / 'fixtures'
      for _ in range(2):  # Again where it is already.
        definition.write_fixture(place, definition.checked(name, config))
        config['data_dir'] = str(place)
        dataset = data.load(config, batch_size=4, seed=0)
        self.assertTrue(dataset.fixture)
      self.assertTrue(settings.is_fixture(config))


if __name__ == '__main__':
  absltest.main()
