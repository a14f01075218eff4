"""Tests of `--help`: examples keep their lines, every field is explained."""

import ast

from absl import flags
from absl.testing import absltest
from experiments.cli import config_flag
from experiments.cli import help_text
from experiments.cli import schema
from rnnzoo import data
from tests.experiments import commands
from tests.experiments import config_flag_test


class HelpTest(absltest.TestCase):

  def test_examples_keep_their_lines(self):
    seen = 0
    for path in (commands.ROOT / 'experiments').rglob('*.py'):
      first = ast.parse(path.read_text()).body[:1]
      text = ast.get_docstring(ast.Module(first, []), clean=False)
      if text and 'python -m experiments' in text:
        seen += 1
        # A backslash at the end of a line joins it to the next one, unless the
        # string is raw.
        lines = first[0].end_lineno - first[0].lineno
        self.assertEqual(text.count('\n'), lines, path)
    self.assertGreater(seen, 20)

  def test_lists_flags_and_fields(self):
    example = 'Does it.\n\n  python -m it \\\n      --short\n'
    values = flags.FlagValues()
    flags.DEFINE_integer('width', 3, 'The width.', flag_values=values)
    text = help_text.of_command(
        example, [values['width']], config_flag.ConfigFlag()
    )
    self.assertStartsWith(text, example)
    self.assertRegex(text, r'\n  --width +The width\. Default: 3\.\n')
    self.assertRegex(text, r'\n  total_steps=1000 +The number of')
    self.assertRegex(text, r'\n  data\.level=char +What a token is')
    self.assertRegex(text, r'\n  model\.num_layers=3 +The number of blocks')
    self.assertIn('\nOptions of min_gru, ', text)
    self.assertRegex(text, r'\n  expansion_factor=1\.0 +Hidden features')
    self.assertNotIn('data.num_pairs', text)

    flag = config_flag.ConfigFlag()
    flag.filename = 'experiments/configs/synthetic/mqar.py'
    flag.value = config_flag_test.parse('synthetic/mqar.py:lru')
    text = help_text.of_command(example, [], flag)
    self.assertIn(flag.filename, text)
    self.assertRegex(text, r'\n  data\.num_pairs=\d+ +The number M of pairs')
    self.assertRegex(text, r'\n  r_min=[\d.]+ +Smallest initial')

  def test_every_field_is_explained(self):
    known = dict(schema.FIELDS)
    for name in data.DATASETS:
      fields = schema.data_fields(name)
      known |= {f'{name}: data.{field}': fields[field] for field in fields}
    for name, field in known.items():
      self.assertEndsWith(field.help, '.', name)


if __name__ == '__main__':
  absltest.main()
