"""Tests of `--config`: arguments, fields that choose others, and exports."""

import pathlib

from absl import app
from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import config_flag
from experiments.reporting import collecting
from rnnzoo import errors
from tests.experiments import commands

CONFIGS = commands.ROOT / 'experiments/configs'


def parse(file, *words):
  """Returns the config of a command line."""
  return config_flag.parse_alone(f'{CONFIGS / file}', *words).value


class ConfigFlagTest(parameterized.TestCase):

  @parameterized.parameters(
      'quickstart.py:lru', 'synthetic/selective_copying.py:min_lstm',
      'default.py:lru,gru',
  )
  def test_the_argument_is_the_layer(self, file):
    layer = file.partition(':')[2]
    self.assertEqual(parse(file).model.layer, layer)

  def test_another_layer_drops_the_options_of_the_first(self):
    config = parse('quickstart.py')
    self.assertIn('expansion_factor', config.model.layer_options)
    for words in (
        ('quickstart.py:lru',), ('quickstart.py', '--config.model.layer=lru')
    ):
      config = parse(*words)
      self.assertEqual(config.model.layer, 'lru')
      self.assertEmpty(config.model.layer_options)
    config = parse(
        'quickstart.py', '--config.model.layer_options={"r_min": 0.5}',
        '--config.model.layer=lru',
    )
    self.assertEqual(config.model.layer_options.to_dict(), dict(r_min=0.5))
    # The same layer keeps its options.
    config = parse('quickstart.py', '--config.model.layer=min_gru')
    self.assertIn('expansion_factor', config.model.layer_options)

  def test_a_preset_and_what_was_asked_for_beside_it(self):
    for words in (
        ['--config.preset=mamba_130m', '--config.model.num_layers=2'],
        ['--config.model.num_layers=2', '--config.preset=mamba_130m'],
    ):
      config = parse('quickstart.py', *words)
      self.assertEqual(config.model.layer, 'mamba')
      self.assertEqual(config.model.features, 768)
      self.assertEqual(config.model.num_layers, 2)
    with self.assertRaisesRegex(errors.UserError, 'mean "mamba_130m"'):
      parse('quickstart.py', '--config.preset=mamba_130')

  def test_another_data_set_brings_its_fields(self):
    config = parse(
        'quickstart.py', '--config.data.num_pairs=8', '--config.data.name=mqar'
    )
    self.assertEqual(config.data.num_pairs, 8)
    self.assertEqual(config.data.vocab_size, 8192)
    self.assertEqual(config.data.sequence_length, 128)  # The config's.
    self.assertNotIn('level', config.data)
    config = parse('default.py', '--config.data.name=mqar')
    self.assertEqual(config.data.sequence_length, 64)  # The data set's.
    with self.assertRaisesRegex(app.UsageError, 'no config field data.level'):
      parse(
          'default.py', '--config.data.name=mqar', '--config.data.level=byte'
      )
    with self.assertRaisesRegex(errors.UserError, 'no data set .mqqr'):
      parse('default.py', '--config.data.name=mqqr')

  def test_bad_words(self):
    for words, message in (
        (['--config.batch=3'], 'no config field batch'),
        (['--config.model.layer_options.x=3'], 'An entry is added with'),
        (['--config.stop_at.loss=3'], 'An entry is added with'),
    ):
      with self.assertRaisesRegex(app.UsageError, message):
        parse('quickstart.py', *words)

  def test_every_config_runs_without_an_argument(self):
    for path in collecting.config_files():
      config = parse(pathlib.Path(path).relative_to(collecting.CONFIGS))
      # A stream of experiments.online has a length, and no training steps.
      steps = config.get('total_steps') or config.stream.length
      self.assertGreater(steps, 0, path)

  @parameterized.parameters('LAYERS', 'DATASETS', 'TASKS')
  def test_bad_exports(self, name):
    path = commands.temporary_directory(type(self)) / f'{name}.py'
    path.write_text(f'{name} = dict(mine=3)\n')
    with self.assertRaisesRegex(errors.UserError, f'{name} of .* must be a d'):
      config_flag.exports_of(str(path))


if __name__ == '__main__':
  absltest.main()
