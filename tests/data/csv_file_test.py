"""Series in CSV files: what is read, standardised and cut into windows."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.series import ett

L, H = 5, 3  # The steps to read and to forecast.
PARTS = (20, 8, 9)
HEAD = 'date,a,b,c\n'


def series(rows=37, seed=0):
  """Returns columns by name, `[rows]`."""
  rng = np.random.default_rng(seed)
  return {name: rng.normal(3, 2, rows).round(3) for name in 'abc'}


def table(columns, first_day=1):
  """Returns the text of a file, a row for each hour; NaN is left empty."""
  lines = [','.join(['date', *columns])]
  for hour, row in enumerate(zip(*columns.values())):
    day, hour = first_day + hour // 24, hour % 24
    texts = ['' if np.isnan(value) else str(value) for value in row]
    lines.append(f'2020-01-{day:02} {hour:02}:00:00,{",".join(texts)}')
  return '\n'.join(lines) + '\n'


def rows_of(dataset, split, key):
  """Returns what all windows of a split have under a key, in order."""
  batches = dataset.eval_batches(split)
  counted = [b['mask'].reshape(len(b['mask']), -1).any(1) for b in batches]
  return np.concatenate([b[key][c] for b, c in zip(batches, counted)])


def windows_by_loop(columns, split, train=PARTS[0]):
  """The oracle: inputs and targets of all windows of a part, one by one."""
  ends = dict(train=(0, 20), validation=(20, 28), test=(28, 37))
  first, last = ends[split]
  inputs, targets = [], []
  scaled = []
  for column in columns.values():
    mean = sum(column[:train]) / train
    variance = sum((x - mean) ** 2 for x in column[:train]) / train
    scaled.append([(x - mean) / variance**0.5 for x in column])
  for start in range(first, last - H + 1):  # The first step to forecast.
    if start < L:
      continue
    inputs.append([[c[t] for c in scaled] for t in range(start - L, start)])
    targets.append([[c[t] for c in scaled] for t in range(start, start + H)])
  return np.array(inputs), np.array(targets)


class CsvFileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'my.csv'

  def load(self, batch_size=4, seed=0, **fields):
    config = dict(
        name='csv_file', path=str(self.path), sequence_length=L, horizon=H,
        parts=PARTS, season=0,
    )
    return data.load(config | fields, batch_size=batch_size, seed=seed)

  def loaded(self, columns, **fields):
    self.path.write_text(table(columns))
    return self.load(**fields)

  def assert_close(self, found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

  @parameterized.parameters('validation', 'test')
  def test_windows_are_those_of_a_loop(self, split):
    dataset = self.loaded(series())
    inputs, targets = windows_by_loop(series(), split)
    self.assert_close(rows_of(dataset, split, 'inputs'), inputs)
    self.assert_close(rows_of(dataset, split, 'targets'), targets)
    self.assertEqual(dataset.source['examples'][split], len(inputs))

  def test_an_epoch_holds_every_training_window_once(self):
    dataset = self.loaded(series(), batch_size=1)
    inputs, targets = windows_by_loop(series(), 'train')
    count = dataset.source['examples']['train']
    self.assertEqual(count, len(inputs))
    batches = [dataset.train_batch(1 + step) for step in range(count)]
    self.assertNotIn('mask', batches[0])
    order = lambda rows: np.array(sorted(np.asarray(rows).ravel().tolist()))
    for key, expected in (('inputs', inputs), ('targets', targets)):
      self.assert_close(
          order([batch[key] for batch in batches]), order(expected)
      )

  def test_the_units_of_the_file(self):
    columns = series()
    dataset = self.loaded(columns)
    self.assertEqual(dataset.target_names, ('a', 'b', 'c'))
    self.assertEqual((dataset.in_features, dataset.out_features), (3, 3))
    _, targets = windows_by_loop(columns, 'test')
    raw = targets * dataset.target_scale + dataset.target_offset
    self.assert_close(raw[0, :, 1], columns['b'][28 : 28 + H])

  def test_only_train_rows_standardise(self):
    changed = series()
    for column in changed.values():
      column[20:] *= 1000
    dataset, other = self.loaded(series()), self.loaded(changed)
    self.assertEqual(dataset.target_offset, other.target_offset)
    self.assertEqual(dataset.target_scale, other.target_scale)
    for step in range(1, 6):
      for key, values in dataset.train_batch(step).items():
        np.testing.assert_array_equal(values, other.train_batch(step)[key])

  def test_a_constant_column(self):
    # Rounding leaves equal numbers a deviation of 1e-17. The jump after the
    # train part must not be divided by it.
    columns = dict(series(), b=np.full(37, 0.1))
    columns['b'][30:] = 5.0
    dataset = self.loaded(columns)
    self.assertEqual(dataset.target_scale[1], 1)
    inputs = dataset.train_batch(1)['inputs'][..., 1]
    self.assertLess(np.abs(inputs).max(), 1e-9)
    self.assert_close(rows_of(dataset, 'test', 'targets')[-1, :, 1], 4.9)

  def test_columns_by_their_roles(self):
    columns = series()
    dataset = self.loaded(columns, targets=('c',), past=('a',), ahead=('b',))
    inputs, targets = windows_by_loop(columns, 'test')
    self.assert_close(
        rows_of(dataset, 'test', 'inputs'), inputs[..., [2, 0, 1]]
    )
    self.assert_close(rows_of(dataset, 'test', 'targets'), targets[..., [2]])
    self.assert_close(rows_of(dataset, 'test', 'future'), targets[..., [1]])
    self.assertEqual(dataset.future_features, 1)
    # Columns that no field names are targets.
    rest = self.load(ahead=('b',))
    self.assertEqual(rest.target_names, ('a', 'c'))
    # And without times the order of the rows counts.
    self.path.write_text(self.path.read_text().replace('date', 'a0'))
    self.assertEqual(
        self.load(targets=('a',), time_column='').target_names, ('a',)
    )

  def test_missing_numbers(self):
    whole, columns = series(), series()
    columns['b'][[0, 3, 4, 30]] = np.nan
    with self.assertLogs(level='INFO') as logs:
      dataset = self.loaded(columns)
    self.assertIn('missing numbers: 4 in b.', ''.join(logs.output))
    known = ~np.isnan(columns['b'])
    train = columns['b'][:20][known[:20]]
    filled, last = [], train.mean()  # 0 at the start.
    for value in columns['b']:
      last = last if np.isnan(value) else value
      filled.append(last)
    scaled = (np.array(filled) - train.mean()) / train.std()
    found = rows_of(dataset, 'test', 'inputs')
    self.assertEqual(dataset.in_features, 4)  # An indicator for b.
    for number, window in enumerate(found):
      span = slice(28 - L + number, 28 + number)
      self.assert_close(window[:, 1], scaled[span])
      np.testing.assert_array_equal(window[:, 3], ~known[span])
    mask = rows_of(dataset, 'test', 'mask')
    for number, window in enumerate(mask):
      span = slice(28 + number, 28 + number + H)
      np.testing.assert_array_equal(window[:, 1], known[span])
      self.assertTrue(window[:, [0, 2]].all())
    self.assertIn('mask', dataset.train_batch(1))
    # Other columns do not notice.
    inputs, _ = windows_by_loop(whole, 'test')
    self.assert_close(found[..., [0, 2]], inputs[..., [0, 2]])

  def test_baselines_are_those_of_a_loop(self):
    columns = series()
    columns['b'][31] = np.nan
    dataset = self.loaded(columns, season=4)
    inputs, targets, mask = (
        rows_of(dataset, 'test', key) for key in ('inputs', 'targets', 'mask')
    )
    expected = {}
    for name, period in (('naive', 1), ('seasonal_naive', 4)):
      differences = []
      for x, y, known in zip(inputs, targets, mask):
        for step in range(H):
          for column in range(3):
            if known[step, column]:
              guess = x[L - period + step % period, column]
              differences.append(y[step, column] - guess)
      expected[f'{name}_mse'] = np.mean(np.square(differences))
      expected[f'{name}_mae'] = np.mean(np.abs(differences))
    found = dataset.baselines()
    self.assertEqual(found.keys(), expected.keys())
    for name, value in expected.items():
      self.assertAlmostEqual(found[name], value, places=5)

  def test_shares(self):
    dataset = self.loaded(series(100), parts=(0.6, 0.2, 0.2))
    self.assertEqual(
        dataset.source['examples'],
        dict(train=60 - L - H + 1, validation=20 - H + 1, test=20 - H + 1),
    )

  def test_steps_of_several_lengths_are_noticed(self):
    self.path.write_text(
        table(series()) + table(series(), 9).partition('\n')[2]
    )
    with self.assertLogs(level='WARNING') as logs:
      self.load()
    self.assertIn('1 of 73 steps of time are not 1:00:00 long', logs.output[0])

  def test_irregular_times(self):
    lengths = np.random.default_rng(0).choice([1, 1, 1, 4], 36)
    elapsed = np.concatenate([[0], lengths.cumsum()])
    columns = zip((1.5e9 + 0.1 * elapsed).tolist(), *series().values())
    self.path.write_text(HEAD + ''.join(
        ','.join(map(repr, map(float, row))) + '\n' for row in columns
    ))
    with self.assertLogs(level='WARNING') as logs:
      dataset = self.load(irregular=True, ahead=('c',))
    self.assertIn('1 to 4 times as long', logs.output[0])
    self.assertTrue(dataset.irregular)
    self.assertEqual(dataset.future_features, 2)
    dt, future = (rows_of(dataset, 'test', key) for key in ('dt', 'future'))
    before = np.concatenate([[1], lengths])  # The step that leads to a row.
    near = lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-4)
    for number in range(len(dt)):
      now = 28 + number
      near(dt[number], before[now - L : now])
      near(
          future[number, :, 1], (elapsed[now : now + H] - elapsed[now - 1]) / H
      )
    with self.assertRaisesRegex(errors.UserValueError, 'needs the times'):
      self.load(irregular=True, time_column='')

  def test_decimal_times_are_equally_far_apart(self):
    self.path.write_text(HEAD + ''.join(
        f'{1.5e9 + 0.1 * row!r},{row % 7},{row % 5},{row % 3}\n'
        for row in range(37)
    ))
    with self.assertNoLogs(level='WARNING'):
      dataset = self.load(irregular=True)
    np.testing.assert_allclose(dataset.train_batch(1)['dt'], 1, rtol=1e-4)

  def test_a_file_of_a_spreadsheet(self):
    """A byte order mark, lines of Windows, quotes, a line of spaces."""
    expected = self.loaded(series()).train_batch(1)['inputs']
    lines = [
        ','.join(f'"{text}"' for text in line.split(','))
        for line in table(series()).splitlines()
    ]
    self.path.write_bytes(
        b'\xef\xbb\xbf' + '\r\n'.join([*lines, '   ', '']).encode()
    )
    found = self.load().train_batch(1)['inputs']
    np.testing.assert_array_equal(found, expected)

  @parameterized.parameters(
      (slice(0, 20), 'b', "Column 'b' has no number in the train part, the f"),
      (slice(20, 28), 'abc', 'The validation part must have a number to fore'),
      (slice(28, 37), 'abc', 'of a, b, c all are missing there'),
  )
  def test_parts_without_a_number(self, rows, names, message):
    columns = series()
    for name in names:
      columns[name][rows] = np.nan
    with self.assertRaisesRegex(errors.UserValueError, message):
      self.loaded(columns)

  @parameterized.parameters((3, 1e300), (3, 1.7e308), (30, 1e20))
  def test_numbers_that_float32_cannot_hold(self, row, number):
    columns = series()
    columns['b'][row] = number
    with self.assertRaisesRegex(errors.UserValueError, "'b' must have numbers"):
      self.loaded(columns)

  @parameterized.named_parameters(
      ('text', '2020-01-02,1,2,three\n', {},
       "line 3: column 'c' must be finite numbers, got 'three'"),
      ('infinite', '2020-01-02,1,2,inf\n', {}, "line 3: column 'c' must be"),
      ('python', '2020-01-02,1,2,1_0\n', {}, "line 3: column 'c' must be"),
      ('endless', 'inf,1,2,3\n', {}, "line 3: .* a number, got 'inf'"),
      ('column', '', dict(targets=('OT',)), "no column 'OT' .data.targets.;"),
      ('joined', '', dict(targets=('a,b',)), r"written \('a', 'b'\)."),
      ('near', '', dict(past=('A',)), "no column 'A' .data.past.; it has a, b"),
      ('time', '', dict(time_column='time'), "no column 'time' .data.time_col"),
      ('twice', '', dict(targets=('a',), past=('a',)),
       "data.targets and data.past both name column 'a'"),
      ('again', '', dict(targets=('a', 'a')), "data.targets names column 'a'"),
      ('none', '', dict(past=('a', 'b', 'c')), 'data.targets must name'),
      ('order', '2019-12-31,1,2,3\n', {},
       'line 3: the time 2019-12-31 is not after 2020-01-01'),
      ('equal', '2020-01-01,1,2,3\n', {}, 'line 3: the time 2020-01-01 is not'),
      ('date', 'yesterday,1,2,3\n', {}, "line 3: .* ISO 8601.* 'yesterday'"),
      ('forms', '7,1,2,3\n', {}, 'all times must be of one form'),
      ('fields', '2020-01-02,1,2\n', {},
       'line 3: a row must have as many fields as the first line, 4, got 3'),
      ('rows', '', dict(parts=(0.7, 0.1, 0.2)), 'The train part of 1 rows'),
      ('parts', '', dict(parts=(0.7, 0.1)), 'data.parts must be three'),
      ('shares', '', dict(parts=(0.7, 0.7, 0.1)), 'data.parts must be three'),
      ('many', '', dict(parts=(3, 1, 1)), 'are 5 rows in all, but there are 1'),
  )
  def test_bad_files(self, rows, fields, message):
    self.path.write_text(HEAD + '2020-01-01,1,2,3\n' + rows)
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      self.load(**fields)
    self.assertIn(str(self.path), str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      (b'', 'must have a line of names and at least one row'),
      (b'date,a,b\n', 'must have a line of names and at least one row'),
      (b'date,a,a\n1,2,3\n', "several columns 'a'"),
      (b'date,a\n1,\xff\n', 'is no CSV file in UTF-8'),
      (b'date;a\n1;2\n', "commas must separate .*, got ';' in the first"),
      (b'2020-01-01,1,2.5\n2020-01-02,1,2\n', 'names of the columns, got num'),
  )
  def test_files_without_a_table(self, content, message):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      self.load()
    self.assertNotIn('\n', str(caught.exception))

  def test_too_few_rows(self):
    self.path.write_text(table(series()))
    with self.assertRaisesRegex(
        errors.UserValueError,
        'The validation part of 8 rows has no window: data.sequence_length 5 '
        'and data.horizon 9 need 9 rows in it',
    ):
      self.load(horizon=9)


class EttTest(absltest.TestCase):

  def test_the_protocol_of_the_field(self):
    directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    ett.write_fixture(directory, None)
    dataset = data.load(
        dict(name='ett', data_dir=str(directory)), batch_size=32, seed=0
    )
    self.assertEqual(dataset.target_names, ett.COLUMNS)
    self.assertEqual(
        dataset.source['examples'],
        dict(train=8209, validation=2785, test=2785),
    )
    file = directory / 'ett' / 'ETTh2.csv'
    for path in (file, file.parent):
      other = data.load(
          dict(name='ett', file='ETTh2', path=str(path)), batch_size=32, seed=0
      )
      self.assertEqual(other.sequence_length, 336)


if __name__ == '__main__':
  absltest.main()
