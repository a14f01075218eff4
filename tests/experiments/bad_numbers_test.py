"""A NaN in one row of one process: all of them do the same about it."""

from absl.testing import absltest
import numpy as np
import pytest
from tests.experiments import commands
from tests.experiments import hosts_test
from tests.experiments import several_test

PROGRAM = 'tests.experiments.bad_numbers'


class BadNumbersTest(hosts_test.HostsTest):

  def test_roll_back(self):
    losses = self.train_one_and_two('rollback', (
        r'Back to step 4, with the learning rate times 0.5; batches 5 to 6 are '
        'left out'
    ))
    self.assertNotIn(None, losses.values())

  @pytest.mark.long
  def test_skip(self):
    losses = self.train_one_and_two(
        'skip', 'not finite at step 6 .*: skipped, number 1 in all'
    )
    self.assertEqual([s for s, loss in losses.items() if loss is None], [6])

  def train_one_and_two(self, policy, said):
    """Trains on one and two processes; checks that they do the same."""
    directory = commands.temporary_directory(self)
    found = []
    for count in (1, 2):
      workdir = directory / str(count)
      words = (
          f'--workdir={workdir}', *several_test.WORDS, '--bad=6',
          '--config.total_steps=8', f'--config.on_nan={policy}',
      )
      processes = [
          commands.Command(PROGRAM, *words, xla_flags=hosts_test.QUICKLY)
      ] if count == 1 else hosts_test.start(count, PROGRAM, *words)
      first, *others = self.wait(processes, [0] * count)
      self.assertRegex(first.stderr, said)
      for other in others:
        self.assertEqual(other.stdout + other.stderr, '')
      found.append(commands.metrics(workdir, 'train_loss'))
    one, two = found
    self.assertEqual(list(one), list(two))
    np.testing.assert_allclose(
        np.array(list(two.values()), float),
        np.array(list(one.values()), float), rtol=1e-5,
    )
    return one


if __name__ == '__main__':
  absltest.main()
