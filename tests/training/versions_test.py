"""Checkpoints of one version of JAX are gone on with by another.

`versions/` holds the workdirs of runs that stopped at step 4, written with both
ends of the range of JAX, and the losses that those runs then came to. They are
written by `python -m tests.training.versions_test DIRECTORY`.
"""

import json
import pathlib
import shutil
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from tests.experiments import commands

VERSIONS = pathlib.Path(__file__).parent / 'versions'
NAMES = ('0.10.2', '0.12.0.1')
STEPS, STOP = 8, 4

WORDS = (
    '--config.data.path=tests/training/versions/text.txt',
    '--config.data.sequence_length=16',
    '--config.model.layer=min_gru',
    '--config.model.num_layers=1',
    '--config.model.features=8',
    f'--config.eval_every={STOP}',
    f'--config.save_every={STOP}',
)


def train(workdir, steps, **options):
  command = commands.train(
      workdir, *WORDS, f'--config.total_steps={steps}', **options
  ).wait()
  if command.code:
    raise AssertionError(str(command))
  return command


def losses(workdir):
  return commands.metrics(workdir, 'train_loss')


def write(directory):
  """Writes the workdir of this version of JAX."""
  workdir = pathlib.Path(directory) / jax.__version__
  train(workdir, STEPS)
  expected = losses(workdir)
  shutil.rmtree(workdir)
  train(workdir, STOP)
  (workdir / 'expected.json').write_text(json.dumps(expected, indent=1) + '\n')
  for name in ('curve.png', 'summary.json', '.lock'):
    (workdir / name).unlink()
  for file in workdir.rglob('commit_success.txt'):
    file.write_text('\n')  # It names a directory of this machine.


class VersionsTest(parameterized.TestCase):

  @parameterized.parameters(*NAMES)
  def test_goes_on(self, version):
    workdir = commands.temporary_directory(self) / 'run'
    shutil.copytree(VERSIONS / version, workdir)
    expected = json.loads((workdir / 'expected.json').read_text())
    command = train(workdir, STEPS)
    self.assertIn(f'Going on after step {STOP}.', command.stderr)
    self.assertNotIn('damaged', command.stderr)
    found = losses(workdir)
    self.assertLen(found, STEPS)
    for step, loss in found.items():
      np.testing.assert_allclose(loss, expected[str(step)], rtol=1e-5)


if __name__ == '__main__':
  if len(sys.argv) == 2 and not sys.argv[1].startswith('-'):
    write(sys.argv[1])
  else:
    absltest.main()
