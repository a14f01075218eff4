"""README.md and the other pages: the code runs, the numbers are measured."""

import contextlib
import io
import os
import pathlib
import re
import shlex
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from experiments.benchmarks import readme
from rnnzoo import layers
from rnnzoo.data import settings
from tests.experiments import commands
from tests.experiments import hosts_test

_ROOT = readme.ROOT
_PAGES = {
    str(path.relative_to(_ROOT)): path.read_text()
    for path in (*sorted(_ROOT.glob('*.md')), *sorted(_ROOT.glob('docs/*.md')))
}
# Where a reader has to fetch something first, and what it is then called.
_FETCHED = {
    'experiments/configs/language/tiny_shakespeare.py': 'tiny_shakespeare'
}
# That a smoke run learns is tested elsewhere.
_FEW_STEPS = [
    f'--config.smoke_overrides.{name}'
    for name in ('total_steps=4', 'eval_every=2', 'save_every=2')
]


def blocks_of(text):
  """Returns `(language, code)` of the fenced blocks of a Markdown text."""
  return re.findall(r'^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def commands_of(code):
  """Returns the commands of a shell block as lists of words."""
  lines = code.replace('\\\n', ' ').splitlines()
  words = (shlex.split(line, comments=True) for line in lines)
  return [command for command in words if command]


def anchors_of(text):
  """Returns the anchors that GitHub makes of the headings of a page."""
  headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  return {re.sub(r'[^\w -]', '', h.lower()).replace(' ', '-') for h in headings}


def pages_to_run():
  """Yields the pages that have something to run, as test parameters."""
  for name, text in _PAGES.items():
    blocks = [b for b in blocks_of(text) if b[0] in ('bash', 'python')]
    if blocks:
      title = re.sub(r'\W+', '_', name.removesuffix('.md').lower())
      yield dict(testcase_name=title, name=name, blocks=blocks)


class PagesTest(parameterized.TestCase):

  @parameterized.named_parameters(*pages_to_run())
  def test_code_runs(self, name, blocks):
    """All blocks of a page, from top to bottom, in one directory."""
    directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    # A reader is in the repository; what a run leaves behind is not.
    (directory / 'experiments').symlink_to(_ROOT / 'experiments')
    (directory / 'my.txt').write_text(''.join(_PAGES.values()))
    for language, code in blocks:
      if language == 'python':
        self.run_python(name, code, directory)
      else:
        for command in commands_of(code):
          self.run_command(command, directory)

  def run_python(self, name, code, directory):
    first = code.partition('\n')[0]
    if first.endswith('.py'):  # A file, for a later command.
      (directory / first.removeprefix('# ')).write_text(code)
      return
    printed = io.StringIO()
    with contextlib.chdir(directory), contextlib.redirect_stdout(printed):
      exec(compile(code, name, 'exec'), {'__name__': 'page'})
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
    if {'experiments.train', 'experiments.ppo'} & {*command} and not any(
        word.startswith('--evaluate') for word in command
    ):
      command = [*command, '--config.smoke=True', *_FEW_STEPS]
    if '--grid=smoke=True' in command:
      command = [*command, *(w.replace('config.', 'grid=') for w in _FEW_STEPS)]
    # Forked, which saves the imports. As a reader has it: one device, not the
    # eight of the tests. Programs of several processes are not kept on disk.
    done = commands.Command(
        command[2], *command[3:], cwd=directory, xla_flags=hosts_test.QUICKLY
    ).wait(timeout=600)
    self.assertEqual(done.code, 0, done)

  @parameterized.parameters(*_PAGES)
  def test_files_and_links_exist(self, name):
    text = _PAGES[name]
    for path in re.findall(
        r'(?:\.ci|experiments|rnnzoo|scripts|tests)/[\w./]*\w',
        re.sub(r'https?://\S+', '', text),
    ):
      self.assertTrue((_ROOT / path).exists(), path)
    for link in re.findall(r'\]\((?!https?://)([^)]+)\)', text):
      path, _, anchor = link.partition('#')
      target = (_ROOT / name).parent / path if path else _ROOT / name
      self.assertTrue(target.exists(), link)
      if anchor:
        self.assertIn(anchor, anchors_of(target.read_text()), link)

  def test_tables_are_those_measured(self):
    for name in readme.tables():
      self.assertEqual(
          readme.updated(name, _PAGES[name]), _PAGES[name],
          f'{name}: run `python -m experiments.benchmarks.readme`.',
      )

  def test_claims_are_those_measured(self):
    for name, claims in readme.claims().items():
      text = ' '.join(_PAGES[name].split())
      self.assertEqual([u for u in claims if u not in text], [])

  def test_readme_is_short(self):
    lines = _PAGES['README.md'].splitlines()
    self.assertLessEqual(sum(not u.startswith('|') for u in lines), 120)
    # The first screen shows one picture.
    pictures = re.findall(r'!\[', _PAGES['README.md'])
    self.assertLen(pictures, 1)

  def test_every_page_can_be_found(self):
    """README.md leads to all of them."""
    links = re.findall(r'\]\(([^)#]+)', _PAGES['README.md'])
    self.assertEqual(set(_PAGES) - {'README.md'} - set(links), set())

  def test_tables_of_layers_name_every_layer_once(self):
    text = _PAGES['docs/layers.md'].partition('\n## What a layer costs')[0]
    named = re.findall(r'^\| `(\w{2,})` \|', text, re.MULTILINE)
    known = [layer.__name__ for layer in layers.LAYERS.values()]
    self.assertCountEqual(named, known)

  def test_layers_without_a_row_of_abilities_are_named(self):
    abilities = commands.imported('experiments.benchmarks.abilities')
    said = _PAGES['docs/layers.md'].partition('benchmarks.abilities')[2]
    for name in abilities.NOT_ASKED:
      self.assertIn(f'`{name}`', said.partition('\n\n')[0])


class TablesTest(parameterized.TestCase):

  def test_a_layer_that_was_not_measured(self):
    """It needs no row: the table says so."""
    table = readme._cost_table({})
    self.assertIn('| `lru` | not measured | | | | | |\n', table)

  def test_a_layer_without_a_paper(self):
    with self.assertRaisesRegex(ValueError, 'does not name its paper'):
      readme.paper_of(type('Mine', (), {'__module__': __name__}))


if __name__ == '__main__':
  absltest.main()
