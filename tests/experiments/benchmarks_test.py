"""Every benchmark runs, at the smallest size, and writes what it says."""

import json

from absl.testing import parameterized
from tests.experiments import commands


class BenchmarksTest(parameterized.TestCase):

  @parameterized.parameters(
      ('linear_scan', '--shapes=2,16,8', '--dtypes=bfloat16', '--repeats=1',
       '--malloc=pinned'),
      ('gated_scan', '--shapes=2,16,8', '--gates=rg_lru', '--repeats=1'),
      ('speedup', '--lengths=8', '--our_lengths=16', '--repeats=1',
       '--batch=2', '--features=8', '--layers=MinGRU'),
      ('accuracy', '--lengths=16', '--implementations=sequential'),
      ('gpu_suite', '--interpret', '--only=linear float32 2x70x128 constant'),
  )
  def test_runs(self, name, *flags):
    out = commands.temporary_directory(self) / 'result.json'
    command = f'experiments.benchmarks.{name}'
    done = commands.Command(command, f'--out={out}', *flags).wait()
    self.assertEqual(done.code, 0, done.stdout + done.stderr)
    record = json.loads(out.read_text())
    self.assertTrue(record['rows'] or record['checks'])
    self.assertIn('jax', record)
