"""Imports run downwards only; `import rnnzoo` loads no more than it needs."""

import ast
import pathlib
import subprocess
import sys

from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).parents[1]
_ABOVE = (
    'convert', 'restoring', 'planning', 'online', 'testing', 'linen'
)
_BESIDE = ('training', 'data', 'generation')

_GROUND = ('errors', 'fields', 'filenames', 'mesh')
# What a part of the package may import of it, itself apart.
_MAY_IMPORT = {
    'errors': (),
    'filenames': ('errors',),
    'fields': ('errors',),
    'mesh': (),
    'ops': ('errors', 'mesh'),
    'layers': ('errors', 'ops'),
    'environments': ('errors', 'fields'),
    'models': ('errors', 'fields', 'ops', 'layers'),
    **{part: _GROUND for part in _BESIDE},
    'tasks': _GROUND + ('layers', 'models') + _BESIDE,
    'rl': _GROUND + (
        'environments', 'ops', 'layers', 'models', 'online', 'training'
    ),
    **{
        part: (
            _GROUND + ('ops', 'layers', 'models', 'tasks') + _BESIDE + _ABOVE
        )
        for part in _ABOVE
    },
}


def parts():
  """The modules and packages right under `rnnzoo`."""
  return {
      path.stem
      for path in (_ROOT / 'rnnzoo').iterdir()
      if path.suffix == '.py' or path.is_dir() and any(path.glob('*.py'))
  } - {'__init__'}


def sources(*folders):
  return [p for f in folders for p in sorted((_ROOT / f).rglob('*.py'))]


def imports(source):
  """Yields `(line, dotted name)` of all that a module's text imports.

  Imports inside functions count. A relative one yields a name with dots ahead.
  """
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield node.lineno, f'{"." * node.level}{node.module or ""}.{alias.name}'


def violations(part, source, known):
  """Lines on each import of `source`, a module of `part`, that points upwards.

  Args:
    part: `ops`, `layers` and so on; `''` for `rnnzoo/__init__.py`,
      `experiments` for what is on top of the package.
    source: Its text.
    known: The names of all parts.

  Returns:
    A list of strings.
  """
  problems = []
  for line, name in imports(source):
    top, _, rest = name.partition('.')
    wrong = None
    if not top:
      wrong = 'relative'
    elif top in ('tensorflow', 'tests'):
      wrong = 'never imported'
    elif top == 'experiments' and part != 'experiments':
      wrong = 'above the package'
    elif top == 'rnnzoo' and part not in ('', 'experiments'):
      target = rest.partition('.')[0]
      if target not in known:
        wrong = 'of the package itself, which is above'
      elif target not in (part,) + _MAY_IMPORT[part]:
        wrong = f'{part} may import {_MAY_IMPORT[part] or "nothing"}'
    if wrong:
      problems.append(f'line {line}: {name}: {wrong}')
  return problems


class FloorsTest(parameterized.TestCase):

  def test_every_part_has_its_place(self):
    self.assertContainsSubset(parts(), _MAY_IMPORT)

  def test_imports_run_downwards(self):
    problems = []
    for path in sources('rnnzoo', 'experiments'):
      folder, *inner = path.relative_to(_ROOT).parts
      part = folder if folder == 'experiments' else inner[0]
      part = part.removesuffix('.py')
      if part == '__init__':
        part = ''
      problems += [
          f'{path.relative_to(_ROOT)}, {problem}'
          for problem in violations(part, path.read_text(), parts())
      ]
    self.assertEmpty(problems, '\n'.join(problems))

  @parameterized.parameters(
      ('ops', 'from rnnzoo import layers'),
      ('ops', 'from rnnzoo.layers import base'),
      ('layers', 'import rnnzoo.models.blocks'),
      ('layers', 'def f():\n  from rnnzoo import training'),
      ('layers', 'from rnnzoo import testing'),
      ('models', 'from rnnzoo import restore'),
      ('models', 'import rnnzoo'),
      ('models', 'from . import blocks'),
      ('training', 'from rnnzoo import ops'),
      ('training', 'from rnnzoo import data'),
      ('data', 'from rnnzoo import training'),
      ('generation', 'from rnnzoo import models'),
      ('errors', 'from rnnzoo import ops'),
      ('restoring', 'from experiments import train'),
      ('data', 'import tensorflow as tf'),
      ('experiments', 'import tensorflow.data'),
  )
  def test_an_import_upwards_is_noticed(self, part, source):
    self.assertLen(violations(part, source, {*_MAY_IMPORT}), 1)

  @parameterized.parameters(
      ('layers', 'from rnnzoo import ops\nfrom rnnzoo import errors'),
      ('layers', 'from rnnzoo.layers.base import Carry as Carry'),
      ('training', 'from rnnzoo.training import losses'),
      ('restoring', 'from rnnzoo import data, models, training'),
      ('experiments', 'import rnnzoo\nfrom experiments import train'),
      ('data', 'import tensorflow_datasets as tfds'),
  )
  def test_other_imports_are_not(self, part, source):
    self.assertEmpty(violations(part, source, {*_MAY_IMPORT}))


class ImportTest(parameterized.TestCase):

  def test_import_loads_the_floors_only(self):
    script = 'import sys, rnnzoo; print(*sys.modules)'
    result = subprocess.run(
        [sys.executable, '-c', script], cwd=_ROOT, capture_output=True,
        text=True, check=True,
    )
    loaded = result.stdout.split()
    ours = {name.split('.')[1] for name in loaded if name.startswith('rnnzoo.')}
    floors = {'errors', 'fields', 'mesh', 'ops', 'layers', 'models'}
    self.assertContainsSubset(ours, floors)
    heavy = {
        'tensorflow', 'orbax', 'tensorflow_datasets', 'grain', 'array_record',
        'matplotlib',
    }
    self.assertEmpty(heavy.intersection(loaded))
