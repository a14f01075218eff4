"""Tests of `processes.multihost`: arguments, and which rows a process reads."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from rnnzoo import errors
from rnnzoo.training import sharding
from rnnzoo.training.processes import multihost


class DataShardTest(parameterized.TestCase):

  @parameterized.parameters(
      # Devices of process 0 (this one), the mesh, and what it reads.
      ((0, 1), (8, 1, 1), (0, 4)),
      ((0, 1), (2, 4, 1), (0, 4)),
      ((2, 3), (8, 1, 1), (1, 4)),
      ((0, 1, 2, 3), (2, 1, 4), (0, 2)),
      # A row of the mesh has two processes: both read it.
      ((0, 1), (2, 1, 4), (0, 2)),
      ((6, 7), (2, 1, 4), (1, 2)),
      ((0, 1), (1, 1, 8), (0, 1)),
      # Not side by side.
      ((0, 2), (8, 1, 1), ((0, 2), 8)),
      ((1, 2), (8, 1, 1), ((1, 2), 8)),
  )
  def test_processes_read_the_rows_of_their_devices(self, mine, mesh, expected):
    mesh = sharding.make_mesh(
        dict(zip(('data', 'fsdp', 'model'), mesh)) | dict(sequence=1)
    )
    rest = [d.id for d in jax.devices() if d.id not in mine]
    owner = dict.fromkeys(mine, 0)
    for i, device in enumerate(rest):
      owner[device] = 1 + i // len(mine)
    found = multihost.data_shard(mesh, lambda device: owner[device.id])
    self.assertEqual(found, expected)

  def test_meshes_with_unequal_parts_raise(self):
    mesh = sharding.make_mesh(dict(data=8, fsdp=1, model=1, sequence=1))
    with self.assertRaisesRegex(errors.UserError, 'does not deal equal parts'):
      multihost.data_shard(mesh, lambda device: int(device.id > 2))


class OneProcessTest(parameterized.TestCase):

  def test_one_process_agrees_with_itself(self):
    mesh = sharding.make_mesh(dict(data=8, fsdp=1, model=1, sequence=1))
    largest = multihost.Largest(mesh)
    self.assertEqual([largest(15), largest(0)], [15, 0])
    self.assertTrue(multihost.agreed(True))
    self.assertFalse(multihost.agreed(False))
    multihost.check_shared('/there/is/none')

  @parameterized.parameters((16, 8), (12, 4), (7, 1))
  def test_as_many_devices_as_can_share_a_batch(self, batch_size, count):
    self.assertLen(multihost.sharing_devices(batch_size), count)

  @parameterized.parameters(
      (dict(num_processes=2), 'coordinator_address, process_id is missing'),
      (dict(coordinator_address='here', num_processes=2, process_id=0),
       "must be host:port, got 'here'"),
      (dict(coordinator_address='a:1', num_processes=2, process_id=2),
       'process_id must be from 0 to num_processes - 1'),
  )
  def test_arguments_that_make_no_run_raise(self, arguments, message):
    with self.assertRaisesRegex(errors.UserError, message):
      multihost.initialize(**arguments)


if __name__ == '__main__':
  absltest.main()
