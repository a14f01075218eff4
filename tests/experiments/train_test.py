"""The training command from end to end, on configs made small."""

import json
import pathlib
import re
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import results
from experiments.cli import tasks
from experiments.configs import default
import numpy as np
from rnnzoo import restoring
from tests.experiments import commands


class QuickstartTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = commands.temporary_directory(cls) / 'run'
    cls.command = cls.train()

  @classmethod
  def train(cls):
    return commands.train(
        cls.workdir, '--config.smoke=True',
        *(
            f'--config.smoke_overrides.{name}={steps}'
            for name, steps in (
                ('total_steps', 4), ('eval_every', 2), ('save_every', 2)
            )
        ),
        config='--config=experiments/configs/quickstart.py',
    ).wait()

  def test_what_it_leaves(self):
    self.assertEqual(self.command.code, 0, self.command)
    names = {path.name for path in self.workdir.iterdir()}
    self.assertContainsSubset(
        {
            'config.json', 'metrics.jsonl', 'checkpoints', 'summary.json',
            'result.json', 'curve.png', 'sample.txt',
        },
        names,
    )
    self.assertFalse([name for name in names if name.endswith('.new')])
    config = json.loads((self.workdir / 'config.json').read_text())
    self.assertEqual(config['model']['layer'], 'min_gru')
    self.assertEqual(config['model']['features'], 16)
    self.assertEqual(config['total_steps'], 4)
    self.assertGreater(config['model']['vocab_size'], 50)
    for name, steps in (('train_loss', [1, 2, 3, 4]), ('eval_loss', [2, 4])):
      found = commands.metrics(self.workdir, name)
      self.assertEqual(list(found), steps)
      self.assertTrue(all(np.isfinite(v) for v in found.values()))
    self.assertEqual(commands.saved_steps(self.workdir), [2, 4])
    image = (self.workdir / 'curve.png').read_bytes()
    self.assertStartsWith(image, b'\x89PNG')

  def test_summary(self):
    summary = json.loads((self.workdir / 'summary.json').read_text())
    self.assertEqual(summary['model.layer'], 'min_gru')
    self.assertEqual(summary['data.name'], 'python_docs')
    self.assertAlmostEqual(
        summary['test_bits_per_token'], summary['test_loss'] / np.log(2)
    )
    evals = commands.metrics(self.workdir, 'eval_loss')
    self.assertEqual(summary['best_eval_loss'], min(evals.values()))
    self.assertEqual(summary['best_step'], min(evals, key=evals.get))
    self.assertGreater(summary['parameters'], 1000)
    self.assertGreaterEqual(summary['seconds'], 0)
    self.assertStartsWith(summary['device'], 'cpu x 1')

  def test_result(self):
    result = results.read(self.workdir / 'result.json')
    summary = json.loads((self.workdir / 'summary.json').read_text())
    self.assertEqual(
        result['config'], 'experiments/configs/quickstart.py:min_gru'
    )
    self.assertEqual(
        (result['metric'], result['split'], result['unit']),
        ('loss', 'test', 'nats per character'),
    )
    self.assertEqual(result['value'], summary['test_loss'])
    self.assertEqual(
        result['values']['validation']['loss'], summary['best_eval_loss']
    )
    self.assertTrue(result['smoke'])
    self.assertIsNone(result['published'])

  def test_what_it_says(self):
    self.assertRegex(self.command.stdout, r'validation \d\.\d+ and test \d')
    self.assertIn('unigram bits: ', self.command.stdout)
    self.assertIn('gzip bits: ', self.command.stdout)
    said = self.command.stderr
    self.assertRegex(said, r'step 4/4  loss .* characters/s  .*left')

  def test_sample(self):
    text = (self.workdir / 'sample.txt').read_bytes().decode()
    self.assertLen(text, 400)
    first = text.strip().splitlines()[0]
    self.assertIn(first, self.command.stdout)
    vocabulary = restoring.restore_run(self.workdir).vocabulary
    vocabulary.encode(text)  # Or raises.

  def test_same_command_again(self):
    before = {
        path.name: path.read_bytes()
        for path in self.workdir.iterdir()
        if path.is_file() and path.name != '.lock'  # It names the process.
    }
    again = self.train()
    self.assertEqual(again.code, 0, again)
    self.assertIn('Already trained to step 4', again.stderr)
    self.assertEqual(again.stdout, self.command.stdout)
    for name, content in before.items():
      self.assertEqual((self.workdir / name).read_bytes(), content, name)


class TrainTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(directory) / 'deep' / 'run'

  def test_smoke(self):
    """Missing data is made up, which the log and the records say."""
    done = commands.train(
        self.workdir, '--config.smoke=True',
        '--config.smoke_overrides.total_steps=2',
        '--config.smoke_overrides.eval_every=2',
        f'--config.data.data_dir={self.workdir.parent / "data"}',
        config='--config=experiments/configs/images/smnist.py:min_gru',
    ).wait()
    self.assertEqual(done.code, 0, done)
    for name in ('summary.json', 'result.json'):
      record = json.loads((self.workdir / name).read_text())
      self.assertTrue(record['fixture'])
      self.assertNotIn(str(self.workdir.parent), str(record))
    self.assertIn('SMOKE RUN ON GENERATED DATA', done.stderr)

  def test_stops_where_numbers_end(self):
    # The rate is sane for one step and then rises beyond all bounds.
    done = commands.train(
        self.workdir, '--config.optimizer.schedule=linear',
        '--config.optimizer.end_learning_rate=1e38', '--config.save_every=1',
        '--config.total_steps=6', '--config.model.norm=layer',
    ).wait()
    self.assertEqual(done.code, 1, done)
    self.assertNotIn('Traceback', done.stderr)
    last = done.stderr.splitlines()[-1]
    self.assertRegex(last, r'Error: The .* (at|after) step [2-6].* checkpoint')
    bad = int(re.search(r'(?:at|after) step (\d+)', last)[1])
    losses = commands.metrics(self.workdir, 'train_loss')
    self.assertTrue(all(losses[step] for step in range(1, bad)))  # Not null.
    kept = commands.saved_steps(self.workdir)
    self.assertNotEmpty(kept)
    self.assertLess(kept[-1], bad)
    self.assertIn(f'The last good checkpoint is step {kept[-1]}', last)
    self.assertFalse((self.workdir / 'summary.json').exists())

  def test_deterministic(self):
    # With dropout, on several devices.
    workdirs = self.workdir / 'one', self.workdir / 'two'
    for workdir in workdirs:
      done = commands.train(
          workdir, '--deterministic', '--config.total_steps=2',
          '--config.eval_every=2', devices=2,
      ).wait()
      self.assertEqual(done.code, 0, done)
    for name in ('train_loss', 'grad_norm', 'eval_loss'):
      one, two = (commands.metrics(workdir, name) for workdir in workdirs)
      self.assertNotEmpty(one)
      self.assertEqual(one, two)
    one, two = (commands.digests(workdir, 2) for workdir in workdirs)
    self.assertEqual(one, two)

  def test_must_beat_gzip(self):
    done = commands.train(
        self.workdir, '--config.total_steps=1', '--config.must_beat_gzip=True'
    ).wait()
    self.assertEqual(done.code, 1, done)
    self.assertRegex(
        done.stderr.splitlines()[-1], r'Error: The model .* not beat gzip'
    )

  def test_smoke_overrides_of_no_field(self):
    config = default.get_config()
    config.smoke = True
    config.smoke_overrides.totl_steps = 3
    with self.assertRaisesRegex(ValueError, 'smoke_overrides: .*totl'):
      tasks.resolve(config)


if __name__ == '__main__':
  absltest.main()
