"""README.md: each section's Python and commands run, top to bottom."""

import contextlib
import io
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from experiments.benchmarks import readme
from rnnzoo import layers
from rnnzoo.data import settings
from tests.experiments import commands

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_README = (_ROOT / 'README.md').read_text()
# Where a reader has to fetch something first, and what it is then called.
_FETCHED = {'experiments/configs/tiny_shakespeare.py': 'tiny_shakespeare'}


def blocks_of(text):
  """Returns `(language, code)` of the fenced blocks of a Markdown text."""
  return re.findall(r'^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def commands_of(code):
  """Returns the commands of a shell block as lists of words."""
  lines = code.replace('\\\n', ' ').splitlines()
  words = (shlex.split(line, comments=True) for line in lines)
  return [command for command in words if command]


def sections():
  """Yields the sections that have something to run, as test parameters."""
  for part in re.split(r'^##? ', _README, flags=re.MULTILINE)[1:]:
    title = re.sub(r'\W+', '_', part.partition('\n')[0].lower())
    blocks = [b for b in blocks_of(part) if b[0] in ('bash', 'python')]
    if blocks:
      yield dict(testcase_name=title, blocks=blocks)


class ReadmeTest(parameterized.TestCase):

  @parameterized.named_parameters(*sections())
  def test_runs(self, blocks):
    directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    # A reader is in the repository; what a run leaves behind is not.
    (directory / 'experiments').symlink_to(_ROOT / 'experiments')
    (directory / 'my.txt').write_text(_README)
    for language, code in blocks:
      if language == 'python':
        self.run_python(code, directory)
      else:
        for command in commands_of(code):
          self.run_command(command, directory)

  def run_python(self, code, directory):
    first = code.partition('\n')[0]
    if first.endswith('.py'):  # A file, for a later command.
      (directory / first.removeprefix('# ')).write_text(code)
      return
    printed = io.StringIO()
    with contextlib.chdir(directory), contextlib.redirect_stdout(printed):
      exec(compile(code, 'README.md', 'exec'), {'__name__': 'readme'})
    said = re.findall(r'^print\(.*\)  # (.*)$', code, re.MULTILINE)
    self.assertEqual(printed.getvalue().splitlines(), said)

  def run_command(self, command, directory):
    if command[0].startswith('scripts/'):  # They would install; see .ci/run.
      self.assertTrue(os.access(_ROOT / command[0], os.X_OK), command)
      return
    self.assertEqual(command[0], 'python')
    if command[1] != '-m':  # It would download.
      self.assertTrue((_ROOT / command[1]).is_file(), command)
      return
    for word in command:
      fetched = _FETCHED.get(word.removeprefix('--config='))
      if fetched and not (settings.data_directory() / fetched).exists():
        return
    if 'experiments.train' in command:
      command = [*command, '--config.smoke=True']
    # As a reader has it: one device, not the eight of the tests.
    env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    path = [str(_ROOT), env.get('PYTHONPATH')]
    env['PYTHONPATH'] = os.pathsep.join(filter(None, path))
    done = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=directory, env=env, text=True, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    self.assertEqual(done.returncode, 0, f'{command}\n{done.stdout}')

  def test_names_every_layer(self):
    table = _README.partition('## Layers')[2].partition('\n## ')[0]
    for name, layer in layers.LAYERS.items():
      self.assertIn(f'| `{layer.__name__}` |', table)
      self.assertIn(f'`{name}`', _README)

  def test_tables_are_those_measured(self):
    self.assertEqual(readme.updated(_README), _README)
    costs = readme.record('layers_cpu.json')['rows']
    self.assertCountEqual(
        [row['layer'] for row in costs if row['length'] == 4096], layers.LAYERS
    )

  def test_claims_are_those_measured(self):
    text = ' '.join(_README.split())
    self.assertEqual([u for u in readme.claims() if u not in text], [])

  def test_every_layer_was_asked_what_it_learns(self):
    abilities = commands.imported('experiments.benchmarks.abilities')
    rows = readme.record('abilities.json')['rows']
    said = _README.partition('experiments.benchmarks.abilities')[2]
    for task in ('remember', 'parity'):
      self.assertCountEqual(
          [row['layer'] for row in rows if row['task'] == task],
          set(layers.LAYERS) - set(abilities.NOT_ASKED),
      )
    for name in abilities.NOT_ASKED:
      self.assertIn(f'`{name}`', said.partition('\n\n')[0])

  def test_files_exist(self):
    names = re.findall(
        r'(?:\.ci|experiments|rnnzoo|scripts|tests)/[\w./]*\w', _README
    )
    names += re.findall(r'\]\((?!https?://)([^)]+)\)', _README)
    self.assertNotEmpty(names)
    for name in names:
      self.assertTrue((_ROOT / name).exists(), name)


if __name__ == '__main__':
  absltest.main()
