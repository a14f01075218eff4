"""Tests of `experiments.cli.tasks`."""

import json

from absl.testing import absltest
from experiments import plan
from experiments.cli import tasks
from experiments.configs import default
import numpy as np
from rnnzoo import errors
from tests.experiments import commands


class TasksTest(absltest.TestCase):

  def test_a_run_older_than_some_fields(self):
    config = default.get_config().to_dict()
    for fields, name in (
        (config, 'loss_chunk'), (config['data'], 'level'),
        (config['model'], 'remat'),
    ):
      del fields[name]
    config['data']['power'] = 0.01
    config['seed'], config['optimizer']['options'] = 7, {}
    found = tasks.of_run(config)
    self.assertEqual(found.loss_chunk, default.get_config().loss_chunk)
    self.assertEqual(found.data.level, 'char')
    # Older configs had the fields of all data sets.
    self.assertNotIn('power', found.data)
    self.assertEqual(found.model.remat, 'none')
    # What the run had stays, and options are its own.
    self.assertEqual(found.seed, 7)
    self.assertEqual(found.optimizer.options.to_dict(), {})

  def test_a_run_on_arrays_from_python(self):
    config = default.get_config().to_dict() | dict(data=dict(name='arrays'))
    with self.assertRaisesRegex(errors.UserError, 'from Python on arrays'):
      tasks.of_run(config)

  def test_a_kind_that_the_data_set_is_not_for(self):
    for kind in ('classification', 'language_modelling'):
      config = default.use_data(default.get_config(), 'adding')
      config.task = kind
      with self.assertRaisesRegex(
          errors.UserError, f'{kind}, but adding is a data set for regression'
      ):
        tasks.make_task(tasks.resolve(config))

  def test_images_and_lengths_of_steps_in_a_file(self):
    path = commands.temporary_directory(self) / 'frames.npz'
    x = np.random.default_rng(0).integers(256, size=(40, 5, 2, 3, 1))
    np.savez(
        path, x=x.astype(np.uint8), y=x[:, 0, 0, 0, 0] // 128,
        dt=x[..., 0, 0, 0] / 128,
    )
    config = default.use_data(default.get_config(), 'npz_file')
    config.data.path, config.batch_size = str(path), 8
    config.model.layer, config.data.forecast = 'lru', False
    config = tasks.resolve(config)
    task, batch = plan.task_and_shapes(config)
    self.assertEqual(batch['inputs'].shape, (8, 5, 2, 3, 1))
    self.assertEqual(batch['dt'].shape, (8, 5))
    self.assertEqual(task.model.image_shape, (2, 3, 1))
    # The config of a checkpoint is JSON, which has no tuples.
    again = tasks.of_run(json.loads(config.to_json()))
    self.assertEqual(tasks.make_task(again)[0], task)
    self.assertIs(again.data.forecast, False)


if __name__ == '__main__':
  absltest.main()
