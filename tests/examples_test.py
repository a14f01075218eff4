"""The programs in examples/ run, and they are short."""

import csv
import os
import subprocess
import sys

from absl.testing import absltest
import numpy as np
from tests.experiments import commands

EXAMPLES = commands.ROOT / 'examples'


def run(name, *words):
  """Runs an example; returns what it printed."""
  done = subprocess.run(
      [sys.executable, EXAMPLES / name, *words], cwd=commands.ROOT,
      capture_output=True, text=True,
      # One device, not the eight of the tests.
      env=dict(os.environ, PYTHONPATH=str(commands.ROOT), XLA_FLAGS=''),
  )
  if done.returncode:
    raise AssertionError(done.stderr)
  return done.stdout


class ExamplesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = commands.temporary_directory(self)

  def test_at_most_sixty_lines(self):
    for path in EXAMPLES.glob('*.py'):
      self.assertLessEqual(len(path.read_text().splitlines()), 60, path)

  def test_classify_arrays(self):
    out = run(
        'classify_arrays.py', f'--workdir={self.directory / "run"}',
        '--steps=60',
    )
    self.assertRegex(out, r'accuracy: validation \d')
    self.assertRegex(out, 'The first sequence is (negative|positive)')

  def test_forecast_csv(self):
    path = self.directory / 'my.csv'
    with open(path, 'w', newline='') as file:
      writer = csv.writer(file)
      writer.writerow(['date', 'OT'])
      writer.writerows((i, np.sin(i / 5)) for i in range(800))
    out = run(
        'forecast_csv.py', f'--csv={path}', '--column=OT', '--steps=40',
        f'--workdir={self.directory / "run"}',
    )
    self.assertRegex(out, 'mean squared error: validation')
    self.assertRegex(out, 'Repeating the last value')

  def test_recurrent_ppo(self):
    last = run('recurrent_ppo.py', '40').splitlines()[-1]
    right = int(last.split('right ')[1].partition('%')[0])
    self.assertGreater(right, 90)  # Guessing is right half of the time.


if __name__ == '__main__':
  absltest.main()
