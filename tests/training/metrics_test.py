"""Tests of `rnnzoo.training.metrics`, on real files and a real terminal."""

import importlib.util
import io
import json
import math
import os
import pathlib
import pty
import resource
import subprocess
import sys
import tempfile
import time
from unittest import mock
import warnings

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.image
import numpy as np
from rnnzoo import errors
from rnnzoo.training import metrics
from rnnzoo.training import summary
from rnnzoo.training.metrics import curves


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


class PlotCurvesTest(MetricsTestCase):

  def draw(self):
    path = metrics.plot_curves(self.workdir)
    self.assertEqual(path, self.workdir / 'curve.png')
    image = matplotlib.image.imread(path)
    self.assertEqual(image.shape[:2], (675, 1200))
    return image

  def test_images_of_no_point_one_point_and_many(self):
    images = [self.draw()]
    with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
      writer.write(1, {'train_loss': 4.0, 'eval_loss': math.nan})
      images.append(self.draw())
      for step in range(2, 300):
        row = {'train_loss': 1.5 + 3 / step}
        if step % 50 == 0:
          row['eval_loss'] = 1.6 + abs(step - 200) / 500
        writer.write(step, row)
      images.append(self.draw())
      writer.write(300, {'eval_ema_loss': 2.0})
    (self.workdir / 'config.json').write_text(
        '{"model": {"layer": "min_gru"}, "data": {"name": "python_docs"}}'
    )
    (self.workdir / 'summary.json').write_text('{"parameters": 651264}')
    images.append(self.draw())
    with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
      speed = {'tokens_per_second_per_device': 1e5, 'input_wait': 0.01}
      writer.write(301, speed)
      writer.write(302, speed)
    images.append(self.draw())
    for before, after in zip(images, images[1:]):
      self.assertFalse(np.array_equal(before, after))
    self.assertEqual(
        curves._title(self.workdir),
        'min_gru on python_docs, 651k parameters',
    )
    self.assertLen(list(self.workdir.glob('curve*')), 1)

  def test_points_are_drawn_in_the_order_of_steps(self):
    rows = [dict(step=s, eval_loss=x) for s, x in ((3, 1), (1, 3), (2, 2))]
    steps, losses = curves._column(rows, 'eval_loss')
    np.testing.assert_array_equal([steps, losses], [[1, 2, 3], [3, 2, 1]])

  def test_axes_and_legend_name_what_is_drawn(self):
    with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
      for step in (1, 2, 3):
        writer.write(step, {
            'train_loss': 4.0, 'eval_loss': 0.0002, 'eval_other_split_loss': 4,
            'tokens_per_second_per_device': 1e5, 'input_wait': 0.01,
        })
    with mock.patch.object(
        matplotlib.figure.Figure, 'savefig', autospec=True
    ) as savefig:
      metrics.plot_curves(self.workdir, loss_unit='nats per character')
    figure = savefig.call_args.args[0]
    losses, speed, wait = figure.axes
    self.assertEqual(losses.get_ylabel(), 'loss, nats per character')
    (bits,) = losses.child_axes
    self.assertEqual(bits.get_ylabel(), 'loss, bits per character')
    self.assertEqual(speed.get_xlabel(), 'step')
    for tick in speed.get_xticks():
      self.assertEqual(tick, round(tick))
    labels = losses.get_legend_handles_labels()[1]
    self.assertEqual(labels[:3], ['training', 'validation', 'other split'])
    # Four digits of a small number, too.
    self.assertIn('0.0002 nats, 0.0002885 bits', labels[3])
    for axes in (speed, wait):
      (line,) = axes.lines
      self.assertEqual(axes.yaxis.label.get_color(), line.get_color())
      self.assertEqual(
          axes.yaxis.get_tick_params()['labelcolor'], line.get_color()
      )
    self.assertNotEqual(speed.lines[0].get_color(), wait.lines[0].get_color())

  def test_another_metric_has_a_panel_and_its_best_value_a_star(self):
    with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
      for step, accuracy in ((1, 0.5), (2, 0.875), (3, 0.875), (4, 0.25)):
        writer.write(step, {
            'train_loss': 4.0, 'eval_loss': 0.2, 'eval_other_loss': 0.3,
            'train_accuracy': 0.5, 'eval_accuracy': accuracy,
            'tokens_per_second_per_device': 1e5, 'input_wait': 0.01,
        })
    with mock.patch.object(
        matplotlib.figure.Figure, 'savefig', autospec=True
    ) as savefig:
      metrics.plot_curves(
          self.workdir, loss_unit='mean squared error', unit='pixels',
          metric='accuracy', best_mode='max',
      )
    accuracy, loss, speed, _ = savefig.call_args.args[0].axes
    self.assertEqual(accuracy.get_ylabel(), 'accuracy')
    self.assertEqual(
        accuracy.get_legend_handles_labels()[1],
        ['training', 'validation', 'best: 0.875 at step 2'],
    )
    self.assertEqual(loss.get_ylabel(), 'loss, mean squared error')
    self.assertEqual(
        loss.get_legend_handles_labels()[1], ['training', 'validation', 'other']
    )
    self.assertEmpty(loss.child_axes)  # No bits.
    self.assertEqual(speed.get_ylabel(), 'pixels/s\nper device')

  def test_the_title_can_come_from_the_summary(self):
    (self.workdir / 'summary.json').write_text(
        '{"model.layer": "lru", "data.name": "mqar", "parameters": 1000}'
    )
    self.assertEqual(
        curves._title(self.workdir), 'lru on mqar, 1.00k parameters'
    )

  def test_smoothing_follows_a_line_and_removes_noise(self):
    line = np.linspace(4.0, 1.0, 500)
    np.testing.assert_allclose(curves._smooth(line)[:-10], line[:-10])
    np.testing.assert_allclose(curves._smooth(line), line, atol=0.03)
    rough = np.random.default_rng(0).standard_normal(500)
    self.assertLess(np.std(curves._smooth(rough)), 0.4)


class ProgressTest(MetricsTestCase):

  def run_progress(self, **options):
    with metrics.Progress(4, tokens_per_step=1000, **options) as progress:
      for step in range(1, 5):
        time.sleep(0.01)
        progress.update(step, jnp.float32(2.5) if step % 2 == 0 else None)
    return progress

  def test_without_a_terminal_there_are_log_lines(self):
    file = io.StringIO()
    with self.assertLogs('absl', 'INFO') as logs:
      progress = self.run_progress(file=file, unit='characters')
    self.assertEmpty(file.getvalue())
    self.assertBetween(progress.tokens_per_second, 1e3, 1e5)
    lines = [record.getMessage() for record in logs.records]
    self.assertLen(lines, 3)
    self.assertEqual(lines[0], 'step 0/4  compiling')
    for line, step in zip(lines[1:], (2, 4)):
      self.assertRegex(
          line,
          rf'^step {step}/4  loss 2\.500  [\d.]+k characters/s  00:00 left$',
      )

  def test_notes_come_after_the_loss(self):
    with self.assertLogs('absl', 'INFO') as logs:
      with metrics.Progress(4, file=io.StringIO()) as progress:
        progress.update(2, 2.5, notes=['40% MFU'])
    self.assertEqual(
        logs.records[-1].getMessage(), 'step 2/4  loss 2.500  40% MFU'
    )

  def test_a_finished_run_does_not_say_compiling(self):
    with self.assertNoLogs('absl', 'INFO'):
      with metrics.Progress(4, initial=4, file=io.StringIO()):
        pass

  def test_pauses_do_not_count_in_the_speed(self):
    progress = metrics.Progress(9, tokens_per_step=1000, file=io.StringIO())
    progress.update(1)
    time.sleep(0.02)
    with progress.pause():
      time.sleep(0.3)
    progress.update(2, 1.0)
    self.assertGreater(progress.tokens_per_second, 1000 / 0.3)
    progress.close()

  def test_log_lines_appear_above_the_bar(self):
    program = """
from absl import app, logging
import time
from rnnzoo.training import metrics
def main(_):
  logging.set_verbosity(logging.INFO)
  with metrics.Progress(40, initial=10, tokens_per_step=500) as progress:
    for step in range(11, 41):
      time.sleep(0.02)
      progress.update(step, 2.5)
      if step == 25:
        logging.info('in the middle')
  logging.info('after')
app.run(main)
"""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, '-c', program], stdout=theirs, stderr=theirs
    ) as process:
      os.close(theirs)
      output = b''
      while True:
        try:
          output += os.read(ours, 4096)
        except OSError:  # The other end is closed.
          break
    os.close(ours)
    self.assertEqual(process.returncode, 0, output)
    # What stays on a terminal: of every line its last state.
    lines = [
        line.rstrip('\r').split('\r')[-1].strip()
        for line in output.decode().split('\n')
    ]
    lines = [line for line in lines if line and 'xla_bridge' not in line]
    self.assertLen(lines, 3, output)
    self.assertRegex(lines[0], r'^I\d.* in the middle$')
    self.assertRegex(
        lines[1],
        r'^100% .* 40/40 \[00:\d\d, loss 2\.500, [\d.]+k tokens/s, '
        r'00:00 left\]',
    )
    self.assertRegex(lines[2], r'^I\d.* after$')


if __name__ == '__main__':
  absltest.main()
