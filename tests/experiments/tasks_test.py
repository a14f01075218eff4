"""Tests of `experiments.cli.tasks`."""

from absl.testing import absltest
from experiments.cli import tasks
from experiments.configs import default
from rnnzoo import errors


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


if __name__ == '__main__':
  absltest.main()
