"""What a user gets wrong: one readable line, an exit code, nothing lost."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import tasks
from experiments.configs import default
from rnnzoo import errors
from tests.experiments import commands

# Name, words (with `{dir}` for a temporary directory), exit code, what it says.
USAGE = (
    ('field', '--config.modle.layer=lru', 'Did you mean "model.layer"?'),
    (
        'field_of_a_field', '--config.optimizer.learning_rat=1',
        'field optimizer.learning_rat. Did you mean "optimizer.learning_rate"?',
    ),
    (
        'new_option', '--config.model.layer_options.g=True',
        """added with --config.model.layer_options='{"g": ...}'""",
    ),
    ('not_a_number', '--config.total_steps=many', 'total_steps=many'),
    ('not_an_integer', '--config.total_steps=1.5', 'total_steps=1.5'),
    ('not_a_boolean', '--config.stateful=maybe', 'stateful=maybe'),
    ('no_value', '--config.total_steps', '--config.total_steps'),
    ('stray', 'quickly', 'Unexpected arguments: quickly'),
    ('flag', '--wrokdir=x', "'wrokdir'. Did you mean: workdir"),
)
CONFIG_FILES = (
    ('missing', None, 'There is no config file'),
    ('syntax', 'def get_config(:\n', 'broken.py, line 1: '),
    (
        'raises', 'def get_config():\n  return 1 / 0\n',
        'broken.py, line 2: ZeroDivisionError: division by zero',
    ),
    ('imports', 'import nothing_such\n', 'line 1: ModuleNotFoundError: No mod'),
    ('no_function', 'x = 1\n', 'has no function get_config'),
    ('no_config', 'def get_config():\n  return 1\n', 'return a ConfigDict'),
    ('exits', 'import sys\nsys.exit(3)\n', 'line 2: SystemExit: 3'),
    (
        'no_field',
        'from tests.experiments import tiny\ndef get_config():\n'
        '  config = tiny.get_config()\n  del config.batch_size\n'
        '  return config\n',
        'The config has no field batch_size.',
    ),
    (
        'no_layers',
        'from tests.experiments.tiny import get_config\nLAYERS = 3\n',
        'LAYERS of {path} must be a dictionary of layers (classes) by name, '
        'got 3.',
    ),
)
VALUES = (
    ('layer', ['model.layer=min_gur'], 'Did you mean "min_gru"?'),
    ('pattern', ['model.layer=lru,min_gur'], 'Did you mean "min_gru"?'),
    (
        'layer_option', ['model.layer_options={"expansion_facto": 2}'],
        'Did you mean "expansion_factor"?',
    ),
    ('norm', ['model.norm=rsm'], 'Did you mean "rms"?'),
    ('features', ['model.features=0'], 'model.features must be at least 1'),
    ('dropout', ['model.dropout=1.5'], 'model.dropout must be in [0, 1)'),
    ('bidirectional', ['model.bidirectional=True'], 'is for classifiers'),
    ('data_name', ['data.name=python_doc'], 'Did you mean "python_docs"?'),
    (
        'dataset', ['data.name=tiny_shakespeare', 'data.data_dir={dir}'],
        'prepare_datasets',
    ),
    ('no_file', ['data.path={dir}/no.txt'], 'There is no file'),
    ('no_path', ['data.path='], 'needs data.path'),
    ('empty_text', ['data.path={dir}/empty.txt'], 'too short'),
    ('short_text', ['data.path={dir}/short.txt'], 'too short'),
    ('not_utf8', ['data.path={dir}/latin1.txt'], 'is not UTF-8'),
    ('directory', ['data.path={dir}'], 'latin1.txt (data.path) is not UTF-8'),
    ('level', ['data.level=word'], 'data.level must be one of'),
    ('length', ['data.sequence_length=0'], 'data.sequence_length must be'),
    ('eval_split', ['eval_splits=vaildation'], 'validation'),
    ('optimizer', ['optimizer.name=adamwx'], 'Did you mean "adamw"?'),
    (
        'optimizer_option', ['optimizer.options={"b3": 0.9}'],
        'optax.adamw has no option',
    ),
    ('schedule', ['optimizer.schedule=cosin'], 'Did you mean "cosine"?'),
    ('freeze', ['optimizer.freeze=emebd'], 'no parameter starts with'),
    ('mesh', ['mesh.model=2'], 'do not make up the 1 devices'),
    ('mesh_zero', ['mesh.fsdp=0'], 'mesh sizes must be positive'),
    ('batch', ['accumulate_steps=3'], 'batch_size 8 must be a multiple of 3'),
    ('no_steps', ['total_steps=0'], 'total_steps must be at least 1'),
    ('dispatch', ['steps_per_dispatch=2'], 'log_every 1 must be a multiple of'),
    ('profile', ['profile_steps=3-5'], 'profile_steps must be two steps'),
    ('on_nan', ['on_nan=skp'], 'Did you mean "skip"?'),
    ('seed', ['seed=-1'], 'seed must not be negative'),
    ('init_from', ['init_from={dir}/nowhere'], 'init_from: there is no run'),
    ('stateful', ['stateful=True'], 'stateful needs data.contiguous'),
)


class BadInputTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    self.workdir = self.directory / 'run'

  def check(self, command, code, text):
    """The command says this in one line, beside what it logs."""
    command.wait()
    self.assertEqual(command.code, code, command)
    lines = [
        line for line in command.stderr.splitlines()
        if not re.match(r'\d\d:\d\d:\d\d  ', line)
    ]
    self.assertLen(lines, 1, command)
    self.assertStartsWith(lines[0], 'Error: ')
    self.assertIn(text, lines[0])
    self.assertLess(len(lines[0]), 700)  # It may name all layers.
    self.assertEqual(command.stdout, '')

  @parameterized.named_parameters(*USAGE)
  def test_usage(self, word, text):
    self.check(commands.train(self.workdir, word), 2, text)
    self.assertFalse(self.workdir.exists())

  @parameterized.parameters(
      ('train', [], '--config is required'),
      ('train', [commands.TINY], '--workdir is required'),
      ('generate', [], '--workdir and --pretrained is required'),
      ('evaluate', [], '--workdir and --pretrained is required'),
      ('evaluate', ['--workdir=x', 'y'], 'Unexpected arguments: y'),
      ('generate', [f'--seed={2**63}'], '--seed='),
      ('generate', ['--seed=-1'], '--seed='),
      ('generate', [f'--length={10**12}'], '--length='),
      ('generate', ['--length=0'], '--length='),
      ('generate', [f'--top_k={10**12}'], '--top_k='),
      ('train', ['--heartbeat_timeout=0'], '--heartbeat_timeout='),
      ('benchmarks.recall', ['--steps=0'], '--steps='),
  )
  def test_missing_flags(self, module, words, text):
    self.check(commands.Command(f'experiments.{module}', *words), 2, text)

  @parameterized.named_parameters(*CONFIG_FILES)
  def test_config_file(self, source, text):
    path = self.directory / 'broken.py'
    if source is not None:
      path.write_text(source)
    command = commands.train(self.workdir, config=f'--config={path}')
    self.check(command, 1, text.replace('{path}', str(path)))

  @parameterized.named_parameters(*VALUES)
  def test_values(self, changes, text):
    (self.directory / 'empty.txt').touch()
    (self.directory / 'short.txt').write_text('to be')
    (self.directory / 'latin1.txt').write_bytes('naïve'.encode('latin1'))
    words = [
        '--config.' + change.replace('{dir}', str(self.directory))
        for change in changes
    ]
    self.check(commands.train(self.workdir, *words), 1, text)
    self.assertEqual(commands.saved_steps(self.workdir), [])

  @parameterized.parameters('generate', 'evaluate')
  def test_no_run(self, module):
    command = commands.Command(
        f'experiments.{module}', f'--workdir={self.workdir}'
    )
    self.check(command, 1, 'There is no run in')

  def test_workdir_is_a_file(self):
    self.workdir.write_text('mine')
    for path in (self.workdir, self.workdir / 'below'):
      self.check(commands.train(path), 1, 'is not a directory')
    self.assertEqual(self.workdir.read_text(), 'mine')

  def test_another_config(self):
    self.workdir.mkdir()
    done = commands.train(self.workdir, '--config.total_steps=2').wait()
    self.assertEqual(done.code, 0, done)
    before = (self.workdir / 'config.json').read_bytes()
    self.check(
        commands.train(
            self.workdir, '--config.total_steps=2', '--config.log_every=2',
            '--config.model.features=24', '--config.seed=1',
        ),
        1, 'model.features: 16 there, 24 now; seed: 0 there, 1 now.',
    )
    self.assertEqual((self.workdir / 'config.json').read_bytes(), before)
    # The text has changed, and has as many characters as before.
    text = (commands.ROOT / 'LICENSE').read_text()
    (self.directory / 'LICENSE').write_text(text.replace('Q', '§'))
    (self.directory / 'tests').symlink_to(commands.ROOT / 'tests')
    command = commands.train(
        self.workdir, '--config.total_steps=2', cwd=self.directory
    )
    if 'Q' in text:
      self.check(command, 1, "only the text has '§', only the model 'Q'")

  def test_config_json_is_no_json(self):
    (self.workdir / 'checkpoints' / '4').mkdir(parents=True)
    (self.workdir / 'config.json').write_text('{"total_st')
    self.check(commands.train(self.workdir), 1, 'config.json is not JSON')

  def test_a_run_that_did_not_begin_is_in_nobodys_way(self):
    config = default.get_config()
    tasks.open_workdir(self.workdir, config)
    config.batch_size = 32
    tasks.open_workdir(self.workdir, config)
    saved = json.loads((self.workdir / 'config.json').read_text())
    self.assertEqual(saved['batch_size'], 32)

  def test_a_run_older_than_a_field_goes_on(self):
    config = default.get_config()
    old = json.loads(config.to_json())
    del old['model']['norm_epsilon'], old['optimizer']['clip'], old['ema_decay']
    (self.workdir / 'checkpoints' / '1').mkdir(parents=True)
    (self.workdir / 'config.json').write_text(json.dumps(old))
    tasks.open_workdir(self.workdir, config)
    saved = json.loads((self.workdir / 'config.json').read_text())
    self.assertEqual(saved, json.loads(config.to_json()))
    # But what it had was the default.
    config.ema_decay = 0.9
    (self.workdir / 'config.json').write_text(json.dumps(old))
    with self.assertRaisesRegex(errors.UserError, 'ema_decay: 0.0 there, 0.9'):
      tasks.open_workdir(self.workdir, config)

  def test_full_disk(self):
    disk = self.directory / 'disk'
    disk.mkdir()
    try:
      subprocess.run(
          ['mount', '-t', 'tmpfs', '-o', 'size=8M', 'tmpfs', str(disk)],
          check=True, capture_output=True,
      )
    except (OSError, subprocess.CalledProcessError) as error:
      self.skipTest(f'Cannot mount a small file system: {error}')
    self.addCleanup(
        subprocess.run, ['umount', str(disk)], check=True, capture_output=True
    )
    workdir = disk / 'run'
    whole = self.directory / 'whole'
    start = commands.train(workdir, '--config.total_steps=4').wait()
    self.assertEqual(start.code, 0, start)
    with open(disk / 'filler', 'wb', buffering=0) as file:
      with contextlib.suppress(OSError):
        while file.write(b'0' * 4096):
          pass
    said = 'No space left on device'
    self.check(commands.train(workdir, '--config.total_steps=8'), 1, said)
    # Room for the config and some lines, not for a checkpoint.
    os.truncate(disk / 'filler', (disk / 'filler').stat().st_size - 3 * 4096)
    self.check(commands.train(workdir, '--config.total_steps=8'), 1, said)
    (disk / 'filler').unlink()
    done = commands.train(workdir, '--config.total_steps=8').wait()
    self.assertEqual(done.code, 0, done)
    self.assertIn('Going on after step 4.', done.stderr)
    shutil.rmtree(whole, ignore_errors=True)
    commands.train(whole, '--config.total_steps=8').wait()
    self.assertEqual(
        commands.metrics(workdir, 'train_loss'),
        commands.metrics(whole, 'train_loss'),
    )

  def start_with_absl(self, text, streams=''):
    """Runs `experiments.train` up to its first import, which does `text`."""
    absl = self.directory / 'absl'
    absl.mkdir()
    (absl / '__init__.py').write_text(text)
    return subprocess.run(
        f'{sys.executable} -m experiments.train {streams}',
        shell=True, cwd=commands.ROOT, capture_output=True, text=True,
        env=dict(os.environ, PYTHONPATH=str(self.directory)),
    )

  def test_ctrl_c_during_imports(self):
    done = self.start_with_absl(
        # A shell ignores SIGINT in what it starts in the background.
        'import os, signal\n'
        'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
        'os.kill(os.getpid(), signal.SIGINT)\n'
    )
    self.assertEqual(done.stderr, 'Interrupted.\n')
    self.assertIn(done.returncode, (-2, 130))

  def test_closed_streams(self):
    path = self.directory / 'mine'
    done = self.start_with_absl(
        f"""import os, sys
number = os.open({str(path)!r}, os.O_CREAT | os.O_WRONLY)
sys.stdout.reconfigure(errors='backslashreplace')
print('to nobody', flush=True)
print('to nobody', file=sys.stderr, flush=True)
sys.exit(7 if number > 2 else 8)
""",
        '<&- >&- 2>&-',
    )
    self.assertEqual(done.returncode, 7)
    self.assertEqual(path.read_text(), '')

  def test_output_is_cut_off(self):
    # As `| head` does it, and in a process that is not forked.
    done = subprocess.run(
        f'{sys.executable} -m experiments.train --help | head -n 1',
        shell=True, cwd=commands.ROOT, capture_output=True, text=True,
    )
    self.assertNotIn('Traceback', done.stderr)


if __name__ == '__main__':
  absltest.main()
