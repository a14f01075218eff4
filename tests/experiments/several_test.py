"""Training on several processes, and what is left when one of them dies."""

import re
import signal

from absl.testing import absltest
import numpy as np
import pytest
from tests.experiments import commands
from tests.experiments import hosts_test

# Smaller than tiny, which saves every 4 steps.
WORDS = (
    commands.TINY, '--config.model.num_layers=1', '--config.model.features=8',
    '--config.model.conv_kernel=0', '--config.model.dropout=0.0',
    '--config.total_steps=32',
)


def train(count, workdir, *words, devices=1):
  """Starts a training run of several processes; of one, without flags."""
  words = (f'--workdir={workdir}', *WORDS, *words)
  if count > 1:
    return hosts_test.start(count, 'experiments.train', *words, devices=devices)
  return [commands.Command(
      'experiments.train', *words, devices=devices,
      xla_flags=hosts_test.QUICKLY,
  )]


class SeveralTest(hosts_test.HostsTest):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = commands.temporary_directory(cls)
    cls.whole = cls.directory / 'whole'
    command = train(1, cls.whole)[0].wait()
    if command.code:
      raise AssertionError(str(command))

  def stop(self, processes, workdir, step, which, signum, codes):
    """Signals one process after a step; returns all, once they have ended."""
    processes[0].wait_for_step(workdir, step)
    processes[which].send(signum)
    return self.wait(processes, codes)

  def check_stopped(self, workdir, first, *others):
    """All have stopped after the same step, and one has said so."""
    said = re.fullmatch(
        r'Stopped by SIGTERM; step (\d+) is saved\. .* goes on from there\.',
        first.stderr.splitlines()[-1],
    )
    self.assertEqual(commands.saved_steps(workdir)[-1], int(said[1]))
    for other in others:
      self.assertEqual(other.stdout + other.stderr, '')

  def check_like_whole(self, workdir, text):
    for name in ('train_loss', 'grad_norm', 'eval_loss'):
      one, several = (
          commands.metrics(where, name) for where in (self.whole, workdir)
      )
      self.assertEqual(list(one), list(several), text)
      np.testing.assert_allclose(
          list(several.values()), list(one.values()), rtol=1e-5, err_msg=name
      )

  def test_stopped_then_killed_then_alone(self):
    workdir = self.directory / 'two'
    ended = self.stop(
        train(2, workdir), workdir, 5, 1, signal.SIGTERM, [143] * 2
    )
    self.check_stopped(workdir, *ended)
    stopped = commands.saved_steps(workdir)[-1]
    ended = self.stop(
        train(2, workdir), workdir, stopped + 6, 1, signal.SIGKILL,
        [hosts_test.LOST, -signal.SIGKILL],
    )
    self.assertIn(f'Going on after step {stopped}.', ended[0].stderr)
    self.assertNotIn('Traceback', ended[0].stderr)
    saved, last = commands.saved_steps(workdir)[-1], commands.last_step(workdir)
    self.assertLess(last - saved, 8)  # That of step `last` was under way.
    (ended,) = self.wait(train(1, workdir, devices=2), [0])
    self.assertIn(f'Going on after step {saved}.', ended.stderr)
    self.check_like_whole(workdir, ended)

  @pytest.mark.long
  def test_four_then_two(self):
    workdir = self.directory / 'four'
    sample = '--config.sample_characters=20'
    ended = self.stop(
        train(4, workdir, sample, '--config.mesh.fsdp=2'), workdir, 5, 2,
        signal.SIGTERM, [143] * 4
    )
    self.check_stopped(workdir, *ended)
    ended = self.stop(
        train(4, workdir, sample, devices=2), workdir, 12, 3, signal.SIGKILL,
        [hosts_test.LOST] * 3 + [-signal.SIGKILL]
    )
    # These two hold parts of the same rows.
    ended = self.wait(
        train(2, workdir, sample, '--config.mesh.model=2'), [0] * 2
    )
    self.check_like_whole(workdir, ended[0])
    self.assertRegex(ended[0].stdout, r'validation \d\.\d+ and test \d\.\d+')
    self.assertLen((workdir / 'sample.txt').read_text(), 20)
    self.assertEqual(ended[1].stdout + ended[1].stderr, '')
    words = 'experiments.evaluate', f'--workdir={workdir}'
    ended = self.wait(hosts_test.start(2, *words, devices=3), [0, 0])
    alone = commands.Command(*words, xla_flags=hosts_test.QUICKLY).wait()
    self.assertEqual(ended[0].stdout, alone.stdout)
    self.assertEqual(ended[1].stdout, '')


if __name__ == '__main__':
  absltest.main()
