"""Every config learns something in its smoke run; some of them resume.

All runs are made in this process, which is much faster than commands.
"""

import functools
import pathlib
import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import config_flag
from experiments.cli import tasks
from experiments.reporting import collecting
import jax
import numpy as np
from rnnzoo import data
from rnnzoo.training import loop
from rnnzoo.training import sharding
from tests.experiments import commands

_CONFIGS = commands.ROOT / collecting.CONFIGS


def configs():
  """Returns the config files, by their place among the configs.

  Those of `rl` are in `ppo_test`, those of `online` in `online_test`.
  """
  files = [
      pathlib.PurePosixPath(file).relative_to(
          collecting.CONFIGS.as_posix()
      ).as_posix()
      for file in collecting.config_files()
  ]
  return [file for file in files if not file.startswith(('rl/', 'online/'))]


@functools.cache
def first_of_each_kind():
  """Returns one config file of each kind of task, by kind."""
  found = {}
  for file in configs():
    flag = config_flag.parse_alone(f'{_CONFIGS / file}')
    data_set = data.find(flag.value.data.name, flag.exports.datasets)
    found.setdefault(flag.value.task or data_set.task, file)
  return found


class SmokeTest(parameterized.TestCase):

  def run_smoke(self, file, workdir):
    """Trains a config, as `experiments.train` does; returns the data set."""
    flag = config_flag.parse_alone(
        f'{_CONFIGS / file}', '--config.smoke=True',
        f'--config.data.data_dir={self.data}', '--config.tensorboard=False',
    )
    flag.value.smoke_overrides.log_every = 1  # The first loss is the highest.
    config = tasks.resolve(flag.value, flag.exports)
    task, dataset = tasks.make_task(config, flag.exports)
    loop.train(task, dataset, config, workdir)
    return dataset

  def setUp(self):
    super().setUp()
    directory = commands.temporary_directory(self)
    self.workdir, self.data = directory / 'run', directory / 'data'
    # As on a machine with one device. The tests have eight, which are slower.
    make_mesh = sharding.make_mesh
    self.enter_context(mock.patch.object(
        sharding, 'make_mesh',
        lambda sizes, devices=None: make_mesh(sizes, jax.devices()[:1]),
    ))

  @parameterized.named_parameters(
      (file.removesuffix('.py').replace('/', '_'), file) for file in configs()
  )
  def test_learns(self, file):
    dataset = self.run_smoke(file, self.workdir)
    self.check_it_learned(dataset)
    if file in first_of_each_kind().values():
      self.check_it_resumes(file)

  def check_it_learned(self, dataset):
    """The loss fell by a fifth, or the accuracy is beyond chance."""
    losses = list(commands.metrics(self.workdir, 'train_loss').values())
    last = np.mean(losses[-max(1, len(losses) // 10):])
    if last <= 0.8 * losses[0]:
      return
    accuracies = commands.metrics(self.workdir, 'eval_accuracy')
    classes = dataset.num_classes or dataset.vocab_size
    self.assertTrue(accuracies and classes, f'{losses[0]} -> {last}')
    best = max(accuracies.values())
    self.assertGreater(best, 2 / classes, f'{losses[0]} -> {last}')

  def check_it_resumes(self, file):
    """As after a kill just before the last save."""
    losses = commands.metrics(self.workdir, 'train_loss')
    times = commands.metrics(self.workdir, 'wall_time')
    *others, last = commands.saved_steps(self.workdir)
    self.assertNotEmpty(others)
    shutil.rmtree(self.workdir / 'checkpoints' / str(last))
    (self.workdir / 'summary.json').unlink()
    self.run_smoke(file, self.workdir)
    self.assertEqual(commands.metrics(self.workdir, 'train_loss'), losses)
    new = commands.metrics(self.workdir, 'wall_time')
    first = min(times)
    self.assertLess(first, others[-1])
    self.assertEqual(new[first], times[first])  # It did not start again.
    self.assertNotEqual(new[last], times[last])


if __name__ == '__main__':
  absltest.main()
