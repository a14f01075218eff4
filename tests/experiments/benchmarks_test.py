"""The benchmarks compare what is the same, run, and write what they say."""

import doctest
import json

from absl.testing import parameterized

# Those with flags are not to be imported: two of them would collide.
from experiments.benchmarks import baselines
from experiments.benchmarks import timing
import jax
import numpy as np
from rnnzoo import errors
from rnnzoo import ops
from tests import tolerance
from tests.experiments import commands


class BenchmarksTest(parameterized.TestCase):

  @parameterized.parameters(
      ('linear_scan', '--shapes=2,16,8', '--dtypes=bfloat16', '--repeats=1',
       '--malloc=pinned'),
      ('gated_scan', '--shapes=2,16,8', '--gates=rg_lru', '--repeats=1'),
      ('speedup', '--lengths=8', '--our_lengths=16', '--repeats=1',
       '--batch=2', '--features=8', '--layers=MinGRU'),
      ('layers', '--lengths=8', '--against_steps=8', '--repeats=1',
       '--batch=2', '--features=64', '--layers=min_gru', '--layers=lstm'),
      ('segments', '--layers=min_gru', '--length=16', '--features=16',
       '--devices=2', '--repeats=1'),
      ('decision_steps', '--layers=min_gru', '--batch=1', '--repeats=1'),
      ('newton', '--layers=elman', '--lengths=8', '--features=8', '--batch=1',
       '--repeats=1'),
      ('context', '--lengths=64', '--lengths=128', '--features=64',
       '--depth=4', '--tokens=2', '--repeats=1'),
      ('accuracy', '--lengths=16', '--implementations=sequential'),
      ('lra_steps', '--short', '--steps=8', '--tasks=retrieval'),
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

  def test_listops_is_what_its_rules_say(self):
    directory = commands.temporary_directory(self)
    command = commands.Command(
        'experiments.benchmarks.listops_data', '--short', '--workers=1',
        f'--data_dir={directory}', f'--out={directory / "result.json"}',
    )
    done = command.wait()
    self.assertEqual(done.code, 0, done.stdout + done.stderr)
    record = json.loads((directory / 'result.json').read_text())
    self.assertEqual(
        record['expressions'], dict(train=600, validation=100, test=100)
    )
    self.assertLen(record['rows'], 13)
    for row in record['rows']:
      self.assertLess(abs(row['deviation']), 4.5, row)

  def test_a_long_sequence_is_shared(self):
    out = commands.temporary_directory(self) / 'result.json'
    done = commands.Command(
        'experiments.benchmarks.long_sequence', f'--out={out}',
        '--length=256', '--num_layers=1', '--features=8', devices=8,
    ).wait()
    # It ends with a message if the losses differ.
    self.assertEqual(done.code, 0, done.stdout + done.stderr)
    split, whole = json.loads(out.read_text())['rows']
    self.assertEqual((split['devices'], whole['devices']), (8, 1))
    name = 'megabytes_per_device'
    self.assertLess(split[name], whole[name] / 2)

  def test_pathfinder(self):
    directory = commands.temporary_directory(self)
    out = directory / 'result.json'
    done = commands.Command(
        'experiments.benchmarks.pathfinder_data', f'--out={out}',
        f'--data_dir={directory}', '--pathfinder=40', '--pathx=20',
        '--workers=1',
    ).wait()
    self.assertEqual(done.code, 0, done.stdout + done.stderr)
    record = json.loads(out.read_text())
    for name, count in (('pathfinder32', 40), ('pathfinder128', 20)):
      row = record[name]
      self.assertEqual(sum(row['images'].values()), count)
      self.assertEqual(sum(row['positive'].values()), count // 2)
      self.assertEqual(row['different_images'], count)
      self.assertGreater(row['cpu_seconds'], 0)
    whole = record['projected_pathfinder128']
    self.assertEqual(whole['bytes_in_memory'], 200_000 * 128**2)
    self.assertTrue(out.with_suffix('.png').exists())

  def test_what_the_scan_is_measured_against_is_the_scan(self):
    operands = np.random.default_rng(0).random((3, 2, 9, 4), np.float32)
    scan = lambda a, x: ops.linear_scan(a, x)[1]
    results = [
        jax.jit(timing.with_gradient(form))(*operands)
        for form in (scan, baselines.associative_scan, baselines.lax_scan)
    ]
    for got in results[1:]:
      tolerance.assert_close(got, results[0])

  def test_table_in_docstring(self):
    self.assertEqual(doctest.testmod(timing).failed, 0)

  def test_an_earlier_record(self):
    out = commands.temporary_directory(self) / 'result.json'
    self.assertEqual(timing.read(out), {'rows': []})
    timing.write({'rows': [{'a': 1}]}, out)
    self.assertEqual(timing.read(out), {'rows': [{'a': 1}]})
    for damaged in (b'', b'{"ro', b'[]', b'{}', b'{"rows": [3]}', b'\xff'):
      out.write_bytes(damaged)
      with self.assertRaisesRegex(errors.UserValueError, 'Remove it, or name'):
        timing.read(out)

  def test_interleaved_medians(self):
    order = []
    medians = timing.interleaved_medians(
        {name: lambda name=name: order.append(name) for name in 'ab'}, 2
    )
    self.assertEqual(''.join(order), 'aabb' * 2)
    self.assertCountEqual(medians, 'ab')
    self.assertGreater(medians['a'].seconds, 0)
    self.assertGreater(medians['a'].cpu_seconds, 0)
