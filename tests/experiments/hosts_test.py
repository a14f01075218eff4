"""Several processes of one run: how they begin, what they share, their end."""

import json
import pathlib
import signal
import time

from absl.testing import absltest
from absl.testing import parameterized
from experiments import local_cluster
import numpy as np
from rnnzoo import data
from tests.experiments import commands
from tests.experiments import peer

LOST = 75
PEER = 'tests.experiments.peer'


# Compiling takes most of the time.
QUICKLY = '--xla_backend_optimization_level=0'


def start(count, module, *words, devices=1, port=None):
  """Starts the processes of a run; returns them."""
  address = f'127.0.0.1:{port or local_cluster.free_port()}'
  return [
      commands.Command(
          module, *words, f'--coordinator_address={address}',
          f'--num_processes={count}', f'--process_id={i}', devices=devices,
          xla_flags=QUICKLY,
      )
      for i in range(count)
  ]


class HostsTest(parameterized.TestCase):

  def wait(self, processes, codes):
    """Waits for all, and checks how they end, in how many lines."""
    ended = [process.wait() for process in processes]
    text = '\n'.join(map(str, ended))
    self.assertEqual([process.code for process in ended], codes, text)
    for process in ended:
      self.assertNotIn('Check failure stack trace', process.stderr)
      if process.code in (LOST, 1):
        self.assertEqual(process.stderr.count('Error: '), 1, text)
    return ended


class BeginAndEndTest(HostsTest):

  def ready(self, count, *words, **kwargs):
    """Starts processes that add for ever, and waits until all do."""
    name = f'{commands.temporary_directory(self)}/'
    processes = start(
        count, PEER, '--times=100000', f'--ready={name}', *words, **kwargs
    )
    end = time.monotonic() + 120
    files = [pathlib.Path(f'{name}{i}') for i in range(count)]
    while not all(file.exists() for file in files):
      if time.monotonic() > end:
        raise AssertionError('\n'.join(str(p.wait(0)) for p in processes))
      time.sleep(0.01)
    return processes, files

  def test_they_agree_and_end(self):
    first, *others = self.wait(start(3, PEER, devices=2), [0] * 3)
    # Rows 1, 1, 2, 2, 3, 3; what the last one said at the second call.
    self.assertEqual(first.stdout, '3 12 [0, 0, 15] True\n')
    self.assertIn('3 processes.', first.stderr)
    for other in others:
      self.assertEqual(other.stdout + other.stderr, '')

  def test_each_reads_its_share(self):
    ended = self.wait(start(2, PEER, '--read', devices=2), [0, 0])
    whole = data.load(
        dict(peer.BATCH, path=commands.ROOT / 'LICENSE'), batch_size=8, seed=3
    ).train_batch(5)['inputs']
    for process in ended:
      batches = [json.loads(line) for line in process.stdout.splitlines()]
      self.assertLen(batches, 2)
      for made, inputs in batches:
        self.assertEqual(made, [4])  # Rows: half of them, once.
        np.testing.assert_array_equal(inputs, whole)

  @parameterized.named_parameters(('another', 2), ('the_coordinator', 0))
  def test_one_is_killed(self, which):
    processes, _ = self.ready(3)
    processes[which].send(signal.SIGKILL)
    codes = [LOST] * 3
    codes[which] = -signal.SIGKILL
    for i, process in enumerate(self.wait(processes, codes)):
      if i != which:
        self.assertRegex(
            process.stderr,
            rf'Error: process {i} lost another process of the run \(.*\); see '
        )
        self.assertNotIn('Traceback', process.stderr)

  def test_one_is_silent(self):
    processes, _ = self.ready(2, '--heartbeat_timeout=5')
    processes[1].send(signal.SIGSTOP)
    self.addCleanup(processes[1].process.kill)
    (process,) = self.wait(processes[:1], [LOST])
    self.assertIn('(no heartbeat of process 1)', process.stderr)

  def test_one_fails(self):
    for fail, said in (
        ('user', 'Error: A wrong value here.\n'), ('bug', 'KeyError: \'A bug')
    ):
      processes = start(2, PEER, f'--fail={fail}', '--times=100000')
      ended = [process.wait() for process in processes]
      self.assertEqual([p.code for p in ended], [LOST, 1], ended[0])
      self.assertIn(said, ended[1].stderr)
      self.assertIn('Error: process 0 lost another process', ended[0].stderr)

  def test_listens_on_the_loopback_interface_only(self):
    port = local_cluster.free_port()
    processes, files = self.ready(2, port=port)
    opened = [
        address for address in files[0].read_text().split()
        if address.endswith(f':{port:04X}')
    ]
    for process in processes:
      process.send(signal.SIGKILL)
      process.wait()
    self.assertLen(opened, 1)
    # As IPv4, or as that in IPv6.
    self.assertRegex(opened[0], r'^(0000000000000000FFFF0000)?0100007F:')

  def test_the_others_do_not_come(self):
    process = commands.Command(
        PEER, '--start_timeout=3', '--num_processes=2', '--process_id=0',
        f'--coordinator_address=127.0.0.1:{local_cluster.free_port()}',
    )
    self.wait([process], [1])
    self.assertIn('cannot join the others', process.stderr)


if __name__ == '__main__':
  absltest.main()
