"""Several processes in one command."""

import re
import signal
import time

from absl.testing import absltest
from absl.testing import parameterized
from tests.experiments import commands


def start(*words):
  return commands.Command('experiments.local_cluster', *words)


class LocalClusterTest(parameterized.TestCase):

  def test_runs_them_and_shows_who_says_what(self):
    log = commands.temporary_directory(self) / 'results' / 'log.txt'
    cluster = start(
        f'--log={log}', '--processes=2', '--devices=2',
        'tests.experiments.peer', '--times=4',
    ).wait()
    self.assertEqual(cluster.code, 0, cluster)
    self.assertEqual(cluster.stdout, '[0] 2 6 [0, 0, 15] True\n')
    said = re.escape('2 processes of tests.experiments.peer --times=4\n')
    said += r'\[0\] [\d:]+  2 processes\.\n'
    self.assertRegex(cluster.stderr, rf'^{said}$')
    self.assertRegex(
        log.read_text(), rf'^{said}{re.escape(cluster.stdout)}$'
    )

  def test_the_exit_code_is_of_the_one_that_failed(self):
    cluster = start(
        'tests.experiments.peer', '--fail=user', '--times=100000'
    ).wait()
    self.assertEqual(cluster.code, 1, cluster)
    self.assertIn('[1] Error: A wrong value here.\n', cluster.stderr)
    self.assertIn('[0] Error: process 0 lost', cluster.stderr)

  def test_a_killed_one_and_one_that_does_not_notice(self):
    cluster = start('--grace=1', '--processes=2', 'tests.experiments.sleeper')
    cluster.wait()
    self.assertEqual(cluster.code, 128 + signal.SIGKILL, cluster)
    self.assertIn('[1] ended by SIGKILL', cluster.stderr)
    self.assertIn('[0] does not end: killed', cluster.stderr)

  def test_passes_signals_on(self):
    log = commands.temporary_directory(self) / 'log.txt'
    cluster = start(
        f'--log={log}', '--processes=1', 'tests.experiments.sleeper'
    )
    end = time.monotonic() + 60
    while not (log.exists() and '[0] ready' in log.read_text()):
      self.assertLess(time.monotonic(), end)
      time.sleep(0.01)
    cluster.send(signal.SIGTERM)
    cluster.wait()
    self.assertEqual(cluster.code, 128 + signal.SIGTERM, cluster)

  def test_no_program(self):
    cluster = start('--processes=2').wait()
    self.assertEqual(cluster.code, 2)
    self.assertIn('Which program?', cluster.stderr)


if __name__ == '__main__':
  absltest.main()
