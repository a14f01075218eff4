"""The published scores of MAD are means over sizes: no single run has them."""

from absl.testing import absltest
from experiments.cli import published
from tests.experiments import commands

_CONFIGS = commands.ROOT / 'experiments/configs/synthetic'


class MADScoresTest(absltest.TestCase):

  def test_no_run_is_compared_with_a_score(self):
    files = sorted(_CONFIGS.glob('mad*.py'))
    self.assertLen(files, 6)
    values = dict(validation=dict(accuracy=0.5), test=dict(accuracy=0.5))
    for file in files:
      numbers = published.of_file(str(file))
      self.assertLen({number.layer for number in numbers}, 7)
      for number in numbers:
        self.assertEmpty(published.find(numbers, number.layer, {}, values))


if __name__ == '__main__':
  absltest.main()
