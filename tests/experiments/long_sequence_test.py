"""The benchmark of one long sequence, on a short one."""

import json
import os
import pathlib
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
from experiments.benchmarks import long_sequence


class LongSequenceTest(absltest.TestCase):

  def test_loss_is_that_of_one_device(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    out = pathlib.Path(directory) / 'results' / 'out.json'
    flags.FLAGS.mark_as_parsed()
    # It sets flags of XLA, which has started long ago.
    self.enterContext(mock.patch.dict(os.environ))
    with flagsaver.flagsaver(
        length=256, num_layers=1, features=8, out=str(out)
    ):
      long_sequence.main([''])  # Exits with a message if they differ.
    record = json.loads(out.read_text())
    split, whole = record['rows']
    self.assertEqual((split['devices'], whole['devices']), (8, 1))
    self.assertLess(split['losses'][1], split['losses'][0])
    name = 'megabytes_per_device'
    self.assertLess(split[name], whole[name] / 2)


if __name__ == '__main__':
  absltest.main()
