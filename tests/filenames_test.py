"""Tests of `rnnzoo.filenames`: every part of the program means one file."""

import os
import pathlib
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import tasks
from experiments.configs import default
import matplotlib
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo import restoring
from rnnzoo.data import settings
from rnnzoo.training import checkpoint
from rnnzoo.training import metrics
from rnnzoo.training.processes import lock


class FilenamesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.home = os.path.realpath(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    matplotlib.get_configdir(), matplotlib.get_cachedir()  # Once for all.
    self.enterContext(mock.patch.dict(os.environ, HOME=self.home))
    self.before = set(os.listdir())

  def test_absolute(self):
    here = os.getcwd()
    os.makedirs(f'{self.home}/far/away')
    os.symlink(f'{self.home}/far/away', f'{self.home}/link')
    for name, expected in (
        ('~/x', f'{self.home}/x'),
        ('~', self.home),
        ('x', f'{here}/x'),
        ('./x//y/', f'{here}/x/y'),
        (pathlib.Path('x'), f'{here}/x'),
        ('a~/x', f'{here}/a~/x'),
        ('gs://bucket/x', 'gs://bucket/x'),
        # As the system has it, and not beside the link.
        ('~/link/../x', f'{self.home}/far/x'),
        ('~/link/x', f'{self.home}/link/x'),
    ):
      self.assertEqual(filenames.absolute(name), expected)
      self.assertEqual(filenames.absolute(expected), expected)
    with self.assertRaisesRegex(errors.UserValueError, 'NUL'):
      filenames.absolute('a\0b')
    with self.assertRaisesRegex(
        errors.UserValueError,
        "no home directory for '~none-such'; write ./~none-such/x for a file",
    ):
      filenames.absolute('~none-such/x')
    self.assertEqual(filenames.absolute('./~x'), os.path.abspath('~x'))

  def test_a_workdir_below_the_home(self):
    with lock.hold('~/run'):
      self.assertEqual(
          tasks.open_workdir('~/run', default.get_config()),
          pathlib.Path(self.home, 'run'),
      )
      with metrics.MetricsWriter('~/run', tensorboard=False) as writer:
        writer.write(1, {'eval_loss': 1})
      metrics.plot_curves('~/run')
      with checkpoint.Checkpointer('~/run/checkpoints'):
        pass
      self.assertLen(metrics.read_metrics('~/run'), 1)
      with self.assertRaisesRegex(errors.UserError, 'There is no checkpoint'):
        restoring.restore('~/run')
    self.assertEqual(set(os.listdir(f'{self.home}/run')), {
        '.lock', 'config.json', 'metrics.jsonl', 'curve.png', 'checkpoints',
    })
    self.assertEqual(os.listdir(self.home), ['run'])
    self.assertEqual(set(os.listdir()), self.before)
    with self.assertRaisesRegex(errors.UserValueError, 'must be a directory'):
      with lock.hold('gs://bucket/run'):
        pass

  def test_flags(self):
    values = flags.FlagValues()
    with mock.patch.object(flags, 'FLAGS', values):
      defined = flags.DEFINE(
          drivers._PathParser(), 'out', None, '', flag_values=values
      )
    values(['program', '--out=~/x'])
    self.assertEqual(defined.value, f'{self.home}/x')
    values(['program', '--out='])
    self.assertEqual(defined.value, '')
    for words in (['--config=~/c.py:lru'], ['--config', '~/c.py:lru']):
      self.assertEqual(
          config_flag._split(['p', *words, '~']),
          (f'{self.home}/c.py:lru', ['p', '~']),
      )

  def test_no_flag_for_a_file_is_a_mere_string(self):
    for path in pathlib.Path(drivers.__file__).parent.rglob('*.py'):
      self.assertNotRegex(
          path.read_text(), r"DEFINE_string\(\s*'(out|workdir)'", path
      )

  def test_data(self):
    for name, expected in (
        ('~/x', pathlib.Path(self.home, 'x')), ('x', pathlib.Path.cwd() / 'x')
    ):
      self.assertEqual(settings.data_directory({'data_dir': name}), expected)
      with mock.patch.dict(os.environ, RNNZOO_DATA_DIR=name):
        self.assertEqual(settings.data_directory({}), expected)


if __name__ == '__main__':
  absltest.main()
