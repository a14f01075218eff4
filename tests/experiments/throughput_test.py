"""The soak and the overhead's measurement run, and a leak is a leak."""

import doctest
import json
import os
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments import soak
from experiments.cli import tasks
import numpy as np
import pytest
from tests.experiments import commands


def make_samples(count=200, every=500, saves_every=20, **changes):
  """Samples of a flat run, noise included; `changes` map step to more."""
  rng = np.random.default_rng(0)
  rows = []
  for step in range(every, (count + 1) * every, every):
    row = dict(
        step=step, saves=step // saves_every,
        resident_mib=400 + rng.random(), files=11, threads=26, arrays=139,
        blocks=800_000 + rng.integers(100), slowness=4 + rng.exponential(),
    )
    if rng.random() < 0.2:  # A save is under way.
      row['files'] += 8
      row['threads'] += 5
      row['blocks'] += 5000
    for name, more in changes.items():
      row[name] += more(step)
    rows.append(row)
  return rows


class SoakTest(parameterized.TestCase):

  def grown(self, samples):
    return [r['what'].split()[0] for r in soak.judge(samples) if not r['flat']]

  def test_example(self):
    self.assertEqual(doctest.testmod(soak).failed, 0)

  def test_a_flat_run(self):
    self.assertEmpty(self.grown(make_samples()))
    # What is needed has been taken by half time.
    early = lambda step: 300 * min(step, 45_000) / 45_000
    self.assertEmpty(self.grown(make_samples(resident_mib=early, files=early)))

  @parameterized.parameters(
      dict(resident_mib=lambda step: step * 200 / 2**20),  # Bytes a step.
      dict(files=lambda step: step // 5000),  # One for each save.
      dict(threads=lambda step: step // 5000),
      dict(arrays=lambda step: step // 10_000),
      dict(blocks=lambda step: 0.2 * step),  # Two each time the log is written.
      dict(blocks=lambda step: 4 * (step // 20)),  # A few for each save.
      dict(slowness=lambda step: step / 10_000),
  )
  def test_what_grows_is_named(self, **changes):
    self.assertEqual(self.grown(make_samples(**changes)), list(changes))

  @parameterized.parameters(True, False)
  def test_what_python_keeps(self, leaks):
    """Not from made-up samples: batches are asked for and something is kept."""
    config = soak.make_config(800, 20, 400)
    config.batch_size = 8  # A row for each device there is.
    task, dataset = tasks.make_task(config)
    sampler = soak.Sampler(task, dataset, config, 20)
    kept = []
    with mock.patch.object(sampler, '_time_bare', return_value=1e-3):
      for step, _ in zip(range(802), sampler.iterator(1)):
        if leaks:
          kept.append(([str(step)], [str(-step)]))
    row = next(r for r in soak.judge(sampler.samples) if r['what'] == 'blocks')
    self.assertEqual(row['flat'], not leaks)
    if leaks:
      self.assertBetween(row['growth'] / (800 / 2), 3, 12)


class CommandTest(parameterized.TestCase):

  def test_soak(self):
    out = commands.temporary_directory(self) / 'soak.json'
    done = commands.Command('experiments.soak', '--short', f'--out={out}')
    self.assertEqual(done.wait().code, 0, done)
    record = json.loads(out.read_text())
    self.assertLen(record['samples'], 39)  # Between forty points in time.
    self.assertTrue(out.with_suffix('.png').exists())

  def test_input_wait(self):
    out = commands.temporary_directory(self) / 'input_wait.json'
    done = commands.Command(
        'experiments.benchmarks.input_wait', '--short', '--steps=4',
        f'--out={out}',
    )
    self.assertEqual(done.wait().code, 0, done)
    record = json.loads(out.read_text())
    self.assertBetween(record['input_share'], 0, 1)
    self.assertLen(record['sets'], 2)
    for row in record['sets']:
      self.assertBetween(row['input_wait'], 0, 1)
      self.assertLess(row['input_wait'], row['input_share'] + 0.01)
    self.assertIn(' parameters\n', done.stdout)

  def test_profile_steps(self):
    workdir = commands.temporary_directory(self) / 'run'
    done = commands.train(
        workdir, '--profile_steps=2:3', '--config.total_steps=4',
        '--config.eval_every=4',
    )
    self.assertEqual(done.wait().code, 0, done)
    self.assertNotEmpty(list((workdir / 'profile').rglob('*.xplane.pb')))

  @pytest.mark.slow
  def test_compiled_programs_are_kept(self):
    directory = commands.temporary_directory(self)
    environment = os.environ | dict(XDG_CACHE_HOME=str(directory), XLA_FLAGS='')
    environment.pop('JAX_COMPILATION_CACHE_DIR', None)
    subprocess.run(
        [
            sys.executable, '-m', 'experiments.train', commands.TINY,
            f'--workdir={directory / "run"}', '--config.smoke=True',
        ],
        cwd=commands.ROOT, env=environment, check=True, capture_output=True,
    )
    kept = [path.name for path in (directory / 'rnnzoo' / 'jax').iterdir()]
    self.assertTrue(any('train_step' in name for name in kept), kept)

  def test_overhead(self):
    out = commands.temporary_directory(self) / 'overhead.json'
    done = commands.Command(
        'experiments.benchmarks.overhead', '--short', f'--out={out}'
    )
    self.assertEqual(done.wait().code, 0, done)
    rows = {row['what']: row for row in json.loads(out.read_text())['rows']}
    self.assertGreater(rows['loop']['ms'], rows['bare step']['ms'] / 2)
    self.assertIn('overhead', rows)


if __name__ == '__main__':
  absltest.main()
