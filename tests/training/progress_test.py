"""Tests of `metrics.progress`, in a log and on a real terminal."""

import io
import os
import pty
import subprocess
import sys
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
from rnnzoo.training import metrics


class ProgressTest(parameterized.TestCase):

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

  def test_batches_of_several_lengths(self):
    progress = metrics.Progress(9, tokens_per_step=1000, file=io.StringIO())
    with mock.patch('time.perf_counter', side_effect=[0, 2, 4]):
      progress.update(0)
      progress.update(4, 1.0, tokens=100)
      self.assertEqual(progress.tokens_per_second, 50)
      progress.update(8, 1.0, tokens=200)
    self.assertEqual(progress.tokens_per_second, 75)
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
