"""Tests of `MetricsWriter` and `read_metrics`, on real files."""

import importlib.util
import json
import math
import os
import pathlib
import resource
import tempfile
import time
from unittest import mock
import warnings

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.training import metrics
from rnnzoo.training import summary


class MetricsTestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
        self.enter_context(tempfile.TemporaryDirectory())
    )
    self.path = self.workdir / 'metrics.jsonl'

  def write(self, steps, resume_step=None):
    with metrics.MetricsWriter(
        self.workdir, resume_step=resume_step, tensorboard=False
    ) as writer:
      for step in steps:
        writer.write(step, {'train_loss': 1 / step})

  def steps(self):
    return [row['step'] for row in metrics.read_metrics(self.workdir)]


class MetricsWriterTest(MetricsTestCase):

  def test_each_line_is_strict_json_and_written_immediately(self):
    before = time.time()
    with metrics.MetricsWriter(self.workdir / 'new') as writer:
      writer.write(3, {
          'train_loss': jnp.float32(0.5), 'grad_norm': np.float64('nan'),
          'eval_loss': -math.inf, 'tokens': np.int64(7), 'note': 'é',
          'no': None, 'good': np.bool_(True),
      })
      text = (self.workdir / 'new' / 'metrics.jsonl').read_text()
    row = json.loads(text, parse_constant=self.fail)
    self.assertBetween(row.pop('wall_time'), before, time.time())
    self.assertEqual(row, {
        'step': 3, 'train_loss': 0.5, 'grad_norm': None, 'eval_loss': None,
        'tokens': 7, 'note': 'é', 'no': None, 'good': True,
    })
    self.assertEndsWith(text, '}\n')

  def test_values_that_are_no_metrics_raise(self):
    with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
      for bad in ({'a': {'b': 1}}, {'a': [1]}, {'a': np.ones(2)}):
        with self.assertRaisesRegex(ValueError, 'at a'):
          writer.write(1, bad)
      with self.assertRaisesRegex(ValueError, "'step'"):
        writer.write(1, {'step': 2})
    self.assertEmpty(metrics.read_metrics(self.workdir))

  @parameterized.parameters(
      (None, [1, 2, 3, 4, 9]), (4, [1, 2, 3, 4, 9]), (2, [1, 2, 9]), (0, [9])
  )
  def test_resuming_cuts_later_and_half_lines(self, resume_step, expected):
    self.write([1, 2, 3, 4])
    whole = self.path.read_bytes()
    # As a killed process leaves it, and with the newline that alone is missing.
    for torn in (b'{"step": 5, "train_lo', b'{"step": 5}'):
      self.path.write_bytes(whole + torn)
      self.assertEqual(self.steps(), [1, 2, 3, 4])
      self.write([9], resume_step)
      self.assertEqual(self.steps(), expected)
      kept = self.path.read_bytes().splitlines(keepends=True)[:-1]
      self.assertEqual(kept, whole.splitlines(keepends=True)[: len(kept)])

  def test_damaged_lines_are_not_read_and_are_cut(self):
    self.write([1])
    good = self.path.read_bytes()
    time_ = b', "wall_time": 1}\n'
    damaged = [
        b'{"step": "2"' + time_, b'{"step": null' + time_,
        b'{"step": -1' + time_, b'{"step": 2}\n',
        b'{"step": 2, "wall_time": "1"}\n', b'\xff\n',
        b'{"step": true' + time_, b'{"step": 1' + b'0' * 30 + time_,
        b'[' * 100_000 + b'\n', b'3\n', b'{"step": 2, "wall_time": NaN}\n',
        b'{"step": 2, "a": ' + b'9' * 9999 + time_,
    ]
    odd = b'{"step": 2, "train_loss": "low", "eval_loss": 1e999' + time_
    self.path.write_bytes(good + b''.join(damaged) + odd)
    self.assertEqual(self.steps(), [1, 2])
    metrics.plot_curves(self.workdir)  # It has but one training loss.
    self.write([3], resume_step=2)
    self.assertTrue(self.path.read_bytes().startswith(good + odd))
    self.assertEqual(self.steps(), [1, 2, 3])

  def test_files_behind_links_are_not_changed(self):
    precious = self.workdir / 'precious'
    self.write([1])
    os.link(self.path, precious)  # As of `cp -l`.
    self.write([2])
    self.assertEqual(precious.read_bytes().count(b'\n'), 1)
    self.assertEqual(self.steps(), [1, 2])
    self.path.unlink()
    for name in ('metrics.jsonl', 'tensorboard'):
      (self.workdir / name).symlink_to(precious)
      with self.assertRaisesRegex(errors.UserError, f'{name} is a symbolic'):
        metrics.MetricsWriter(self.workdir)
      (self.workdir / name).unlink()
    self.assertEqual(precious.read_bytes().count(b'\n'), 1)

  def test_wall_time_does_not_decrease_when_the_clock_is_set_back(self):
    clock, steady = iter([1000.0, 1010.0, 400.0, 900.0, 1100.0]), iter(
        [1.0, 11.0, 13.0, 16.0, 20.0]
    )
    with mock.patch.object(
        time, 'time', lambda: next(clock)
    ), mock.patch.object(time, 'monotonic', lambda: next(steady)):
      self.write([1, 2, 3, 4, 5])
    rows = metrics.read_metrics(self.workdir)
    self.assertEqual(
        [row['wall_time'] for row in rows], [1000, 1010, 1012, 1015, 1100]
    )
    # And between two runs of a workdir.
    rows += [dict(wall_time=w) for w in (500, 501)]
    self.assertEqual(summary.busy_seconds(rows), 16)

  def test_reading_before_anything_is_written(self):
    self.assertEmpty(metrics.read_metrics(self.workdir))

  def test_tensorboard_gets_the_same_numbers(self):
    self.import_or_skip('tensorboardX')
    for resume_step, steps in ((None, [1, 2, 3]), (2, [3])):
      with warnings.catch_warnings():
        warnings.simplefilter('error')
        with metrics.MetricsWriter(
            self.workdir, resume_step=resume_step
        ) as writer:
          for step in steps:
            writer.write(step, {'train_loss': 1 / step, 'bad': math.nan})
    events = self.read_events()
    self.assertEqual(
        [(e.step, v.tag) for e in events for v in e.summary.value],
        [(step, 'train_loss') for step in (1, 2, 3, 3)],
    )
    # A restart marks what TensorBoard has to forget.
    starts = [e.step for e in events if e.HasField('session_log')]
    self.assertIn(3, starts)

  def import_or_skip(self, name):
    if importlib.util.find_spec(name) is None:
      self.skipTest(f'{name} is not installed.')

  def read_events(self):
    """Parses the records of the event files, in order of writing."""
    from tensorboardX.proto import event_pb2

    events = []
    for path in sorted((self.workdir / 'tensorboard').iterdir()):
      data = path.read_bytes()
      while data:
        size = int.from_bytes(data[:8], 'little')
        events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return events

  def test_lines_that_a_full_disk_refuses_are_written_later(self):
    self.write([1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
      limit = self.path.stat().st_size + 10
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
      said = 'Cannot write metrics to .*: File too large'
      try:
        with self.assertLogs(logging.get_absl_logger()) as logs:
          writer.write(2, {'train_loss': 1.0})
          writer.write(3, {'train_loss': 1.0})
        self.assertLen(logs.output, 1)
        self.assertRegex(logs.output[0], said)
        self.assertEqual(self.steps(), [1])
        other = metrics.MetricsWriter(
            self.workdir / 'other', tensorboard=False
        )
        for step in (1, 2, 3):
          other.write(step, {'train_loss': 1.0})
        with self.assertRaisesRegex(errors.UserError, said):
          other.close()
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
      writer.write(4, {'train_loss': 1.0})  # Room again.
      self.assertEqual(self.steps(), [1, 2, 3, 4])
    self.write([5])
    self.assertEqual(self.steps(), [1, 2, 3, 4, 5])


if __name__ == '__main__':
  absltest.main()
