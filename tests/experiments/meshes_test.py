"""The short form of the table of meshes, and what the committed one says."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
from experiments.meshes import cases
from experiments.meshes import table
from rnnzoo import errors
from rnnzoo import layers
from tests.experiments import commands

_RESULTS = pathlib.Path(commands.ROOT) / 'experiments/results/meshes.json'
# Diagonal recurrences whose outputs pass a map that sums over channels.
_DIAGONAL = ('aaren', 'hgrn', 'griffin', 'lru', 'mamba', 's5', 'rwkv4')


class MeshesTest(parameterized.TestCase):

  def test_short(self):
    directory = commands.temporary_directory(self)
    words = 'experiments.meshes', '--short', f'--output={directory}'
    command = commands.Command(*words, devices=8).wait()
    self.assertEqual(command.code, 0, command)
    results = json.loads((directory / 'meshes.json').read_text())
    self.assertEqual(
        {name: len(found) - 1 for name, found in results.items()},
        {name: len(meshes) for name, meshes in cases.short().items()},
    )
    self.assertIn('| min_gru |', (directory / 'meshes.md').read_text())
    again = commands.Command(*words, devices=8).wait()  # Nothing left to do.
    self.assertEqual(again.code, 0, again)
    self.assertNotIn('differ', again.stderr)

  def test_unknown_name(self):
    command = commands.Command('experiments.meshes', '--only=min_gruu').wait()
    self.assertEqual(command.code, 1, command)
    self.assertIn('Did you mean "min_gru"', command.stderr)

  def test_committed_results(self):
    results = json.loads(_RESULTS.read_text())
    table.check(results)
    done = {
        name: {tuple(map(int, mesh.split(','))) for mesh in found}
        for name, found in results.items()
    }
    for name, meshes in cases.everything().items():
      self.assertEqual(done[name], {cases.ONE, *meshes}, name)
    for name in layers.LAYERS:
      self.assertEqual(
          table.gathers_time(results[name]), layers.LAYERS[name].gathers_time,
          name,
      )
      # Rows stay where they are, however parameters are shared.
      moved = results[name]['2,4,1,1']['activations_moved']
      self.assertEqual(moved, {}, name)
    for name in _DIAGONAL:
      moved = results[name]['1,1,8,1']['activations_moved']
      self.assertEqual(moved, {}, name)

  def test_what_is_wrong_is_told(self):
    result = dict(losses=[1.0], state_bytes=100, all_state_bytes=100,
                  activations_moved={}, digest='')
    bad = dict(result, losses=[1.001], digest='x')
    with self.assertRaisesRegex(
        errors.UserError,
        'losses of lru on 1,8,1,1 differ by 1.0e-03; 100 % of the state of lru '
        'on 1,8,1,1 is whole',
    ):
      table.check({'lru': {
          '1,1,1,1': result, '1,8,1,1': bad,
      }})


if __name__ == '__main__':
  absltest.main()
