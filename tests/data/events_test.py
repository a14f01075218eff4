"""Tests of the data sets of events: `hawkes` and `events_csv`."""

import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.events import events_csv
from rnnzoo.data.events import hawkes
from rnnzoo.data.events import sequences
from tests.experiments import commands

CONFIG = types.SimpleNamespace(
    **data.find('hawkes').defaults() | dict(duration=20.0, sequence_length=40)
)
PROCESS = hawkes.make(CONFIG)
K = len(PROCESS.baseline)


def rates(events, time):
  """The rates `[K]` at a time by the definition, a sum over all events."""
  found = PROCESS.baseline.copy()
  for at, kind in zip(events.times, events.types):
    if at < time:
      decay = PROCESS.decay[:, kind]
      found += PROCESS.branching[:, kind] * decay * np.exp(
          -decay * (time - at)
      )
  return found


def expected(events, time):
  """The integral of all rates from 0 to a time, a sum over all events."""
  found = PROCESS.baseline.sum() * time
  for at, kind in zip(events.times, events.types):
    past = np.maximum(time - at, 0)
    found += (PROCESS.branching[:, kind] * -np.expm1(
        -PROCESS.decay[:, kind] * past
    )).sum()
  return found


class HawkesTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.drawn = hawkes.split(PROCESS, np.random.default_rng(0), 60, CONFIG)

  def test_the_likelihood_is_that_of_two_loops_and_of_an_integral(self):
    for events in self.drawn[:5]:
      ends = [*events.times] + [events.end] * (events.end is not None)
      total = 0.0
      for i, (begin, end) in enumerate(zip([0.0, *ends], ends)):
        by_hand = expected(events, begin) - expected(events, end)
        if i < len(events.times):
          at = rates(events, end)
          by_hand += np.log(at[events.types[i]])
          self.assertEqual(
              events.true.right[i], at.argmax() == events.types[i]
          )
        self.assertAlmostEqual(
            events.true.log_likelihood[i], by_hand, places=9
        )
        total += expected(events, end) - expected(events, begin)
      # The rates jump at events only.
      integral = 0.0
      for begin, end in zip([0.0, *ends], ends):
        middle = begin + (end - begin) * (np.arange(200) + 0.5) / 200
        integral += np.mean(
            [rates(events, t).sum() for t in middle]
        ) * (end - begin)
      self.assertAlmostEqual(integral, total, delta=1e-3 * total)

  def test_the_simulation_is_exact(self):
    """In the time of its own integral, the process is a Poisson process."""
    waits = np.concatenate([
        np.diff([expected(events, t) for t in events.times], prepend=0.0)
        for events in self.drawn
    ])
    # The last wait of a window is cut off, which hardly matters here: compare
    # the number of events with the integrals over whole windows.
    whole = sum(
        expected(e, events_end(e)) for e in self.drawn
    )
    self.assertAlmostEqual(len(waits), whole, delta=3 * whole**0.5)
    # The Kolmogorov-Smirnov distance from an exponential distribution.
    steps = np.arange(1, len(waits) + 1) / len(waits)
    distance = np.abs(-np.expm1(-np.sort(waits)) - steps).max()
    self.assertLess(distance, 1.9 / len(waits) ** 0.5)
    counts = np.bincount(
        np.concatenate([e.types for e in self.drawn]), minlength=K
    )
    self.assertGreater(counts.min(), 50)

  def test_a_window_ends_with_its_last_event_or_its_duration(self):
    for events in self.drawn:
      full = len(events.times) == CONFIG.sequence_length
      self.assertEqual(events.end is None, full)
      self.assertLessEqual(events.targets, CONFIG.sequence_length)

  def test_baselines(self):
    dataset = data.load(
        dict(name='hawkes', duration=20.0, train_examples=200,
             eval_examples=50), batch_size=10, seed=0,
    )
    found = dataset.baselines()
    self.assertLess(found['true_loss'] + 0.1, found['poisson_loss'])
    self.assertGreater(found['true_accuracy'], 1.1 / K)
    batches = dataset.eval_batches('test')
    total = sum(b['true_log_likelihood'].sum(dtype=float) for b in batches)
    count = sum((b['targets'] < K).sum() for b in batches)
    self.assertAlmostEqual(found['true_loss'], -total / count, places=5)

  @parameterized.parameters(
      (dict(branching=(0.5,) * 8), 'branching must have 3 x 3 numbers.*got 8'),
      (dict(branching=(0.5,) * 9), 'spectral radius below 1.*got 1.5'),
      (dict(baseline=(0.0,) * 3), 'baseline must have a rate above 0'),
      (dict(decay=(0.0,) * 9), 'data.decay must be'),
  )
  def test_wrong_processes(self, fields, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      data.load(dict(name='hawkes', **fields), batch_size=4, seed=0)


def events_end(events):
  return events.times[-1] if events.end is None else events.end


class CutTest(absltest.TestCase):

  def test_parts_together_are_the_whole(self):
    whole = sequences.Events(
        np.array([1.0, 2.0, 4.0, 4.5]), np.array([0, 1, 0, 1]), end=5.0
    )
    for length in (1, 2, 3, 4, 5, 9):
      parts = sequences.cut(whole, length)
      arrays = sequences.padded(parts, 2, length)
      exists = np.arange(length) < arrays.targets[:, None]
      np.testing.assert_allclose(
          arrays.gaps[:, 1:][exists], [1, 1, 2, 0.5, 0.5]
      )
      self.assertEqual(arrays.types[:, 1:][exists].tolist(), [0, 1, 0, 1, 2])
      self.assertEqual(
          arrays.types[:, 0].tolist(), [2, 0, 1, 0, 1][::length]
      )


class EventsCsvTest(parameterized.TestCase):

  def read(self, text, **fields):
    path = commands.temporary_directory(self) / 'my.csv'
    path.write_text(text)
    config = types.SimpleNamespace(
        **data.find('events_csv').defaults() | dict(
            type_column='kind', sequence_column='who'
        ) | fields
    )
    return events_csv.read(path, config)

  def test_sequences_may_be_mixed_and_dates_have_a_unit(self):
    text = (
        'time,kind,who\n2026-01-01 00:00,b,1\n2026-01-01 01:00,a,2\n'
        '2026-01-01 02:00,a,1\n2026-01-01 04:30,b,2\n2026-01-02 00:00,c,3\n'
    )
    with self.assertLogs(level='WARNING') as caught:
      (one, two), names = self.read(text, time_unit=3600.0)
    self.assertIn("1 of 3 sequences are left out, such as '3'", str(caught))
    self.assertEqual(names, ('a', 'b', 'c'))
    self.assertEqual((one.first, one.end), (1, None))
    self.assertEqual((one.times.tolist(), one.types.tolist()), ([2.0], [0]))
    self.assertEqual(two.times.tolist(), [3.5])
    # With limits, the first event is a target, and so is the end.
    (one, _, _), _ = self.read(
        text, time_unit=3600.0, start='2025-12-31 23:00',
        end='2026-01-03 00:00',
    )
    self.assertEqual((one.first, one.end), (None, 49.0))
    self.assertEqual(one.times.tolist(), [1.0, 3.0])

  @parameterized.named_parameters(
      ('text', '1,a,x\nsoon,a,x\n', {}, "line 3: the time must be .*'soon'"),
      ('nan', '1,a,x\nnan,a,x\n', {}, "line 3: the time must be .*'nan'"),
      ('order', '2,a,x\n1,a,y\n3,a,x\n2.5,b,x\n', {},
       'line 5: the time 2.5 is before 3, the time .* line 4. Sort'),
      ('tie', '1,a,x\n1,b,x\n', {}, 'line 3: two events .* data.min_gap'),
      ('forms', '1,a,x\n2026-01-01,b,x\n', {}, 'must be of one form'),
      ('no_type', '1,,x\n2,b,x\n', {}, "line 2: column 'kind' is empty"),
      ('no_column', '1,a,x\n', dict(type_column='kin'), "no column 'kin'"),
      ('short', '1,a,x\n2,a,y\n', {}, 'no sequence has two events'),
      ('start', '1,a,x\n2,a,x\n', dict(start='1'), 'after data.start 1'),
      ('end', '1,a,x\n2,a,x\n', dict(end='1.5'), 'line 3: .* data.end 1.5'),
      ('limit', '1,a,x\n2,a,x\n', dict(end='late'), 'data.end must be a date'),
      ('parts', '1,a,x\n2,a,x\n', dict(parts=(0.5, 0.1, 0.1)), 'add up to 1'),
      ('fields', '1,a\n', {}, 'line 2: a row must have .* 3, got 2'),
  )
  def test_bad_files(self, rows, fields, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      self.read('time,kind,who\n' + rows, **fields)
    self.assertNotIn('\n', str(caught.exception))

  def test_ties_are_raised(self):
    [found], _ = self.read(
        'time,kind,who\n1,a,x\n1,b,x\n3,b,x\n', min_gap=0.5
    )
    self.assertEqual(found.times.tolist(), [0.5, 2.5])

  def test_whole_sequences_are_shared_out(self):
    path = commands.temporary_directory(self) / 'my.csv'
    events_csv.write_events(path, count=30)
    dataset = data.load(
        dict(name='events_csv', path=str(path), type_column='type',
             sequence_column='sequence', sequence_length=20), batch_size=3,
        seed=0,
    )
    self.assertEqual(dataset.class_names, ('a', 'b'))
    self.assertEqual(dataset.vocab_size, 3)
    self.assertEqual(
        dataset.source['sequences'], dict(train=21, validation=3, test=6)
    )
    # The first event is read and not predicted, and no window has an end.
    batch = dataset.train_batch(1)
    self.assertTrue((batch['inputs'][:, 0] < 2).all())
    np.testing.assert_array_equal(batch['targets'] < 2, batch['mask'])
    self.assertNotIn('true_log_likelihood', batch)
    self.assertEqual([*dataset.baselines()], ['poisson_loss'])

  def test_a_part_without_events(self):
    path = commands.temporary_directory(self) / 'my.csv'
    events_csv.write_events(path, count=3)
    with self.assertRaisesRegex(
        errors.UserValueError, 'my.csv: The validation part has 0 sequences'
    ):
      data.load(
          dict(name='events_csv', path=str(path), sequence_column='sequence'),
          batch_size=4, seed=0,
      )


if __name__ == '__main__':
  absltest.main()
