"""A few of the faults of `experiments.faults`, done in earnest."""

from absl.testing import absltest
from absl.testing import parameterized
from experiments.faults import __main__ as faults
from experiments.faults import runs
import pytest
from tests.experiments import commands


class FaultsTest(parameterized.TestCase):

  @parameterized.named_parameters(*((name, name) for name in faults.SHORT))
  def test_loses_nothing(self, name):
    directory = commands.temporary_directory(self)
    outcomes = list(faults.FAULTS[name](directory, True))
    self.assertNotEmpty(outcomes)
    for outcome in outcomes:
      self.assertTrue(outcome.ok, outcome)

  @parameterized.named_parameters(*((name, name) for name in faults.FAULTS))
  @pytest.mark.long
  def test_long_form_loses_nothing(self, name):
    directory = commands.temporary_directory(self)
    for outcome in faults.FAULTS[name](directory, False):
      self.assertTrue(outcome.ok, outcome)

  def test_table(self):
    outcomes = [
        runs.Outcome('a | b', 'it\nended', 'nothing', True),
        runs.Outcome('c', 'it went on', '9 steps', False),
    ]
    self.assertEndsWith(
        faults.table(outcomes, False),
        '| a \\| b | it ended | nothing | ok |\n'
        '| c | it went on | 9 steps | **lost** |\n',
    )


if __name__ == '__main__':
  absltest.main()
