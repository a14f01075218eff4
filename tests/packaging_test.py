"""The package's metadata, and the scripts that install it."""

import doctest
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import rnnzoo
from tests import quick
import yaml

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_COMMANDS = ('scripts/quickstart', 'scripts/test', '.ci/run')
_EXTRAS = (
    'chat', 'convert', 'cuda', 'decisions', 'dev', 'digits', 'export', 'rl',
    'streams', 'tensorboard', 'test', 'tf',
    'timeseries', 'tokenizers', 'tpu',
)


def load(name):
  """Runs a file of the repository that is not in a package."""
  return runpy.run_path(str(_ROOT / name))


def bash(script, **env):
  """Runs a script after sourcing `scripts/environment.sh`."""
  source = f'. "{_ROOT}/scripts/environment.sh"\n'
  return subprocess.run(
      [shutil.which('bash'), '-euo', 'pipefail', '-c', source + script, 'bash'],
      env=os.environ | env, capture_output=True, text=True, timeout=60,
  )


def write_program(path, script):
  path.write_text(f'#!{shutil.which("sh")}\n{script}\n')
  path.chmod(0o755)


class SetupTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    # Newer Pythons have no setuptools in a new environment.
    setuptools = types.SimpleNamespace(
        setup=mock.Mock(), find_packages=lambda **kwargs: kwargs
    )
    with mock.patch.dict(sys.modules, setuptools=setuptools):
      load('setup.py')
    self.metadata = setuptools.setup.call_args.kwargs

  def test_requirements_have_lower_bounds_only(self):
    extras = self.metadata['extras_require'].values()
    for requirement in sum(extras, self.metadata['install_requires']):
      self.assertRegex(requirement, r'^[\w.-]+(\[\w+\])?(>=[\d.]+)?$')
    self.assertEqual(self.metadata['python_requires'], '>=3.11')

  def test_extras(self):
    self.assertSameElements(self.metadata['extras_require'], _EXTRAS)

  def test_version_is_the_package_s(self):
    self.assertEqual(self.metadata['version'], rnnzoo.__version__)
    changelog = (_ROOT / 'CHANGELOG.md').read_text()
    self.assertIn(f'## {rnnzoo.__version__}', changelog)

  def test_experiments_stay_in_the_repository(self):
    packages = self.metadata['packages']
    self.assertEqual(packages, {'include': ['rnnzoo', 'rnnzoo.*']})

  def test_the_package_is_typed(self):
    for package, names in self.metadata['package_data'].items():
      for name in names:
        self.assertTrue((_ROOT / package / name).is_file(), name)
    self.assertIn('py.typed', self.metadata['package_data']['rnnzoo'])

  def test_few_errors_of_the_type_checker_are_ignored(self):
    ignored = [
        line
        for path in (_ROOT / 'rnnzoo').rglob('*.py')
        for line in path.read_text().splitlines()
        if re.search(r'# (pyright|type): *ignore', line)
    ]
    self.assertLessEqual(len(ignored), 20, ignored)

  def test_ci_pins_the_lower_bounds(self):
    script = (_ROOT / '.ci/run').read_text()
    pins = dict(re.findall(r'([\w-]+)==([\d.]+)', script))
    self.assertEqual(pins.pop('jaxlib'), pins['jax'])
    for peer in ('torch', 'transformers'):  # What tests compare with.
      del pins[peer]
    for name, version in pins.items():
      self.assertIn(f'{name}>={version}', self.metadata['install_requires'])


class QuickTest(parameterized.TestCase):

  @parameterized.parameters(*quick.LEFT_OUT)
  def test_what_is_left_out_exists(self, name):
    self.assertTrue((_ROOT / name).exists())


class HooksTest(parameterized.TestCase):

  def test_hooks_download_nothing(self):
    hooks = yaml.safe_load((_ROOT / '.pre-commit-config.yaml').read_text())
    self.assertEqual([repo['repo'] for repo in hooks['repos']], ['local'])
    for hook in hooks['repos'][0]['hooks']:
      self.assertEqual(hook['language'], 'system')

  def test_the_workflow_runs_what_every_change_must_pass(self):
    path = _ROOT / '.github/workflows/ci.yml'
    workflow = yaml.safe_load(path.read_text())
    steps = workflow['jobs']['ci']['steps']
    self.assertIn('.ci/run', [step.get('run') for step in steps])
    pythons = [step['with']['python-version'] for step in steps
               if step.get('uses', '').startswith('actions/setup-python')]
    self.assertEqual([u.split() for u in pythons], [['3.11', '3.13']])


class ScriptsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )

  @parameterized.parameters(*_COMMANDS, 'scripts/environment.sh')
  def test_is_bash(self, name):
    done = subprocess.run(
        ['bash', '-n', _ROOT / name], capture_output=True, text=True
    )
    self.assertEqual((done.returncode, done.stderr), (0, ''))
    if name in _COMMANDS:
      self.assertTrue(os.access(_ROOT / name, os.X_OK))

  def only_these_programs(self, **programs):
    """Returns environment variables under which nothing else is found."""
    for name in ('awk', 'basename', 'dirname'):
      (self.directory / name).symlink_to(shutil.which(name))
    for name, script in programs.items():
      write_program(self.directory / name.replace('_', '.'), script)
    return dict(
        PATH=str(self.directory), PYENV_ROOT='/nowhere', RNNZOO_PYTHON=''
    )

  def test_finds_pythons_by_running_them(self):
    env = self.only_these_programs(
        python3='echo "command not found" >&2; exit 127',  # A dead shim.
        python3_13='echo "3.10 /old/python"',
        python3_12='echo "3.12 /a place/python"',
        python='echo "3.11 /later/python"',
    )
    self.assertEqual(bash('choose_python', **env).stdout, '/a place/python\n')

  def test_takes_an_untested_python_only_for_want_of_a_tested_one(self):
    env = self.only_these_programs(
        python3='echo "3.14 /new/python"', python3_12='echo "3.12 /ok/python"'
    )
    self.assertEqual(bash('choose_python', **env).stdout, '/ok/python\n')
    (self.directory / 'python3.12').unlink()
    self.assertEqual(bash('choose_python', **env).stdout, '/new/python\n')

  def test_says_that_there_is_no_python(self):
    done = bash('choose_python', **self.only_these_programs())
    self.assertEqual(done.returncode, 1)
    self.assertIn('no working Python 3.11 or newer', done.stderr)

  def test_installs_once(self):
    venv = self.directory / 'venv'
    (venv / 'bin').mkdir(parents=True)
    log = self.directory / 'log'
    write_program(venv / 'bin' / 'python', (
        'case "$1" in\n'
        '-V) echo Python 3.11.0 ;;\n'
        f'scripts/install.py) echo "$*" >> "{log}" ;;\n'
        'esac'
    ))
    env = dict(RNNZOO_VENV=str(venv), RNNZOO_PYTHON='', RNNZOO_CONSTRAINTS='')
    for script in ('make_environment', 'make_environment test') * 2:
      self.assertEqual(bash(script, **env).returncode, 0)
    env |= dict(RNNZOO_CONSTRAINTS='jax==1 flax==2')
    self.assertEqual(bash('make_environment test', **env).returncode, 0)
    self.assertEqual(log.read_text().splitlines(), [
        'scripts/install.py --editable .',
        'scripts/install.py --editable .[test]',
        'scripts/install.py --editable .[test] jax==1 flax==2',
    ])

  def test_leaves_directories_alone_that_are_no_environments(self):
    done = bash('make_environment', RNNZOO_VENV=str(self.directory))
    self.assertEqual(done.returncode, 1)
    self.assertIn('is no environment', done.stderr)


class InstallTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.uv_environment = load('scripts/install.py')['uv_environment']

  def test_example(self):
    test, = doctest.DocTestFinder().find(
        self.uv_environment, globs=dict(uv_environment=self.uv_environment)
    )
    self.assertEqual(doctest.DocTestRunner().run(test).failed, 0)

  def test_indices(self):
    environment = self.uv_environment([
        ":env:.index-url='https://one.example/simple'",
        "global.extra-index-url='https://a.example https://b.example'",
        "user.index-url='https://two.example/simple'",
        "install.no-input='true'",
        "global.constraint='/etc/constraints.txt'",
    ])
    self.assertEqual(environment, {
        'UV_DEFAULT_INDEX': 'https://one.example/simple',
        'UV_INDEX': 'https://a.example https://b.example',
        'UV_INDEX_STRATEGY': 'unsafe-best-match',
        'UV_CONSTRAINT': '/etc/constraints.txt',
    })

  def test_leaves_to_pip_what_uv_does_not_know(self):
    self.assertIsNone(self.uv_environment(["global.no-index='true'"]))


if __name__ == '__main__':
  absltest.main()
