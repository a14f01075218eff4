"""`experiments.online`: its configs, a smoke run, and its records."""

import json
import pathlib

from absl.testing import absltest
from experiments.cli import config_flag
from experiments.cli import help_text
from experiments.cli import results
from experiments.cli import schema
from experiments.cli import tasks
from experiments.configs import default
from experiments.configs.online import settings
from experiments.reporting import collecting
from rnnzoo import errors
from rnnzoo.online import streams
from tests.experiments import commands

online = commands.imported('experiments.online')

CONFIGS = [
    file for file in collecting.config_files()
    if pathlib.PurePosixPath(file).parent.name == 'online'
]


def parse(file, *words):
  return config_flag.parse_alone(f'{commands.ROOT / file}', *words)


class OnlineTest(absltest.TestCase):

  def test_there_is_a_config_of_every_stream(self):
    found = [parse(file).value for file in CONFIGS]
    for config in found:
      schema.check(config)
    self.assertCountEqual(
        [config.stream.name for config in found],
        [*streams.GENERATED, *streams.PACKAGED],
    )

  def test_smoke_run(self):
    """Of a stream from a file; those that are generated run likewise."""
    directory = commands.temporary_directory(self)
    path = directory / 'sunspots.csv'
    path.write_text('year,number\n' + ''.join(
        f'{1700 + i},{(i * 7) % 11}\n' for i in range(40)
    ))
    flag = parse(
        'experiments/configs/online/sunspots.py', '--config.smoke=True',
        f'--config.stream.path={path}', '--config.forgetting=0.9',
    )
    config = tasks.resolve(flag.value, flag.exports, source='stream')
    workdir = directory / 'run'
    online.run_all(flag, config, workdir, ('', None))
    self.assertTrue((workdir / 'curve.png').exists())
    self.assertEqual(
        json.loads((workdir / 'config.json').read_text())['features'], 4
    )
    for name in config.learners:
      record = results.read(workdir / name / 'seed_0' / 'result.json')
      self.assertEqual(record['steps'], 39)
      self.assertEqual(
          record['overrides'], {'forgetting': '0.9', 'smoke': 'True'}
      )
      self.assertTrue(record['smoke'])
      # The command repeats this run: this learner with this seed alone.
      self.assertIn(f'online/sunspots.py:{name} ', record['command'])
      self.assertIn('--config.seed=0', record['command'])
      so_far = commands.metrics(workdir / name / 'seed_0', 'error')
      self.assertAlmostEqual(so_far[39], record['value'], places=6)
      self.assertGreater(record['values']['stream']['naive_error'], 0)
    problems = collecting.collect(workdir).problems
    self.assertLen([p for p in problems if 'a smoke run' in p], 4)

  def test_bad_fields(self):
    for change, message in (
        (lambda c: c.update(featurez=3), 'no config field featurez. Did you'),
        (lambda c: c.update(features=0), 'features must be at least 1'),
        (lambda c: c.stream.update(name='sun'), 'stream.name must be one of'),
        (lambda c: c.update(learners=('lsm_3',)), 'no learner .lsm_3.'),
        (lambda c: c.update(learners=()), 'at least one learner'),
    ):
      config = settings.defaults()
      with config.unlocked():
        change(config)
      with self.assertRaisesRegex(errors.UserValueError, message):
        schema.check(config)
    with self.assertRaisesRegex(errors.UserError, 'by experiments.online'):
      tasks.resolve(settings.defaults())
    with self.assertRaisesRegex(errors.UserError, 'by experiments.train'):
      tasks.resolve(default.get_config(), source='stream')

  def test_help(self):
    for name, field in schema.ONLINE_FIELDS.items():
      self.assertEndsWith(field.help, '.', name)
    flag = config_flag.ConfigFlag(settings.defaults)
    text = help_text.of_command('It.\n', [], flag)
    self.assertRegex(text, r'\n  features=16 +The number of features')
    self.assertRegex(text, r'\n  stream\.length=3000 +The number of steps')


if __name__ == '__main__':
  absltest.main()
