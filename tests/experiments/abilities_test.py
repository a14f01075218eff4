"""What layers can learn, also online, is measured as the scripts say."""

import json

from absl.testing import parameterized
from tests.experiments import commands


class AbilitiesTest(parameterized.TestCase):

  def test_runs_and_goes_on_where_it_was(self):
    out = commands.temporary_directory(self) / 'result.json'
    flags = (
        f'--out={out}', '--steps=2', '--batch=2', '--features=8', '--gap=6',
        '--bits=5', '--more_bits=7',
    )
    run = lambda *words: commands.Command(
        'experiments.benchmarks.abilities', *flags, *words
    ).wait()
    done = run('--layers=min_gru', '--tasks=parity')
    self.assertEqual(done.code, 0, done.stdout + done.stderr)
    record = json.loads(out.read_text())
    (first,) = record['rows']
    done = run('--layers=min_gru', '--layers=lstm')
    self.assertEqual(done.code, 0, done.stdout + done.stderr)
    record = json.loads(out.read_text())
    self.assertIn('jax', record)
    rows = {(row['layer'], row['task']): row for row in record['rows']}
    self.assertEqual(rows.pop(('min_gru', 'parity')), first)
    self.assertSameElements(rows, [
        ('min_gru', 'remember'), ('lstm', 'remember'), ('lstm', 'parity'),
    ])
    for row in rows.values():
      self.assertEqual(row['steps'], 2)
      self.assertBetween(row['accuracy'], 0, 1)
    self.assertTrue(out.with_suffix('.png').exists())


class RecallTest(parameterized.TestCase):

  def test_runs_and_goes_on_where_it_was(self):
    out = commands.temporary_directory(self) / 'result.json'
    flags = (
        f'--out={out}', '--steps=2', '--batch=4', '--features=8', '--pairs=2',
        '--length=12', '--vocab=16',
    )
    run = lambda *words: commands.Command(
        'experiments.benchmarks.recall', *flags, *words
    ).wait()
    done = run('--layers=min_gru')
    self.assertEqual(done.code, 0, done.stdout + done.stderr)
    (first,) = json.loads(out.read_text())['rows']
    done = run('--layers=min_gru', '--layers=attention')
    self.assertEqual(done.code, 0, done.stdout + done.stderr)
    rows = json.loads(out.read_text())['rows']
    attention, same = rows
    self.assertEqual(same, first)
    self.assertEqual(attention['layer'], 'attention')
    for row in rows:
      self.assertEqual(row['steps'], 2)
      self.assertBetween(row['accuracy'], 0, 1)
    # Keys and values of 12 tokens, and the convolution's last inputs, in each
    # of two blocks.
    self.assertEqual(attention['state'], 2 * (2 * 12 * 8 + 2 * 8))
    self.assertTrue(out.with_suffix('.png').exists())


class OnlineErrorTest(parameterized.TestCase):

  def test_the_last_layer_is_exact(self):
    out = commands.temporary_directory(self) / 'result.json'
    done = commands.Command(
        'experiments.benchmarks.online_error', f'--out={out}',
        '--layers=min_gru', '--depths=2', '--features=4', '--length=20',
    ).wait()
    self.assertEqual(done.code, 0, done.stdout + done.stderr)
    rows = json.loads(out.read_text())['rows']
    errors = {row['part']: row['error'] for row in rows}
    self.assertSameElements(errors, ['all', 'encoder', 'layer 1', 'layer 2'])
    self.assertLess(errors['layer 2'], 1e-5)
    self.assertGreater(errors['layer 1'], 1e-3)
