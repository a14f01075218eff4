"""Tests of `rnnzoo.training.memory`."""

import pathlib
import re
import resource
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.training import memory


class MemoryTest(parameterized.TestCase):

  def cgroups(self, version, groups):
    """Makes control groups, as `{name: {file: text}}`."""
    mount = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    for name, files in groups.items():
      (mount / name).mkdir(parents=True, exist_ok=True)
      for file, text in files.items():
        (mount / name / file).write_text(text)
    self.enter_context(
        mock.patch.dict(memory._CGROUP_MOUNTS, {version: mount})
    )

  def room(self, cgroup, meminfo=''):
    """What there is room for, where these are files of `/proc`."""
    files = {
        '/proc/self/cgroup': cgroup, '/proc/meminfo': meminfo,
        '/proc/self/statm': '',
    }
    read = memory._read
    with mock.patch.object(
        memory, '_read', lambda path: files.get(path, None) if (
            path in files) else read(path)
    ), mock.patch.object(memory, '_free_in_malloc', lambda: 0):
      return memory.on_host()

  def test_limits_of_control_groups_version_2(self):
    self.cgroups(2, {
        '': {},
        'a': {'memory.max': '1000', 'memory.current': '700',
              'memory.stat': 'anon 500\ninactive_file 100\nactive_file 50\n'
                             'slab_reclaimable 50\n'},
        'a/b': {'memory.max': 'max', 'memory.current': '300'},
    })
    meminfo = 'MemTotal: 9 kB\nMemAvailable: 2 kB\nSwapFree: 1 kB\n'
    room = self.room('0::/a/b\n', meminfo)
    self.assertEqual(room, (500, 'the limit of its control group'))
    self.assertEqual(self.room('0::/\n', meminfo)[0], 3 * 1024)
    self.assertIsNone(self.room('0::/\n'))

  def test_limits_of_control_groups_version_1_in_a_container(self):
    self.cgroups(1, {'': {  # It does not see the group by its name.
        'memory.limit_in_bytes': '1000', 'memory.usage_in_bytes': '900',
        'memory.stat': 'total_inactive_file 30\ntotal_active_file 20\n',
    }})
    room = self.room('5:cpu:/x\n4:memory:/docker/x\n')
    self.assertEqual(room, (150, 'the limit of its control group'))

  def test_limits_of_ulimit(self):
    with mock.patch.object(
        resource, 'getrlimit', lambda which: (
            (2**40 if which == resource.RLIMIT_AS else -1), -1)
    ):
      room = min(memory._of_ulimits())
    self.assertEqual(room.limit, 'ulimit -v')
    self.assertBetween(room.bytes, 2**38, 2**40 - 2**20)

  def test_free_memory_in_malloc_is_added(self):
    blocks = [np.empty(100_000, np.uint8) for _ in range(200)]
    before = memory._free_in_malloc()
    if before:  # With glibc.
      del blocks[::2]  # What lies between two others stays with the process.
      self.assertGreater(memory._free_in_malloc() - before, 5_000_000)
    room = memory.Room(1000, 'so much')
    with mock.patch.multiple(
        memory, _of_machine=lambda: [room], _of_cgroups=lambda: [],
        _of_ulimits=lambda: [], _free_in_malloc=lambda: 24,
    ):
      self.assertEqual(memory.on_host(), (1024, 'so much'))

  def test_arrays_that_cannot_fit_are_refused(self):
    mesh = jax.make_mesh((jax.device_count(),), ('data',))
    shared = jax.NamedSharding(mesh, jax.P('data'))
    whole = jax.NamedSharding(mesh, jax.P())
    with mock.patch.object(
        memory, 'on_host', lambda: memory.Room(4096, 'so much')
    ):
      make = lambda sharding: [
          jax.ShapeDtypeStruct((1024,), jnp.float32, sharding=sharding)
      ]
      memory.check(make(shared), 'Things', '')
      memory.check(make(None), 'Things', '')
      if jax.device_count() > 1:  # A copy on each of them.
        with self.assertRaisesRegex(
            errors.UserError, r'^Things need .* room for 4.0 KiB \(so much\)'
        ):
          memory.check(make(whole), 'Things', '')
    memory.check(make(whole), 'Things', '')

  @parameterized.parameters(
      ('RESOURCE_EXHAUSTED: Out of memory allocating 4000000000000 bytes.',
       '3.6 TiB'),
      ('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.25GiB.',
       '1.2 GiB'),
  )
  def test_out_of_memory_is_an_error_of_one_line(self, text, size):
    for room, said in (
        (2**30, ', there is room for 1.0 GiB'), (2**50, '. Use a sm'),
    ):
      with self.assertRaisesRegex(
          errors.UserError,
          f'^Out of memory: {size} were asked for at once{re.escape(said)}',
      ), mock.patch.object(
          memory, 'on_device', lambda _: memory.Room(room, 'so much')
      ):
        with memory.readable_errors():
          raise jax.errors.JaxRuntimeError(text)
    with self.assertRaisesRegex(RuntimeError, 'else'):
      with memory.readable_errors():
        raise RuntimeError('else')
    with self.assertRaises(errors.UserError):
      with memory.readable_errors():
        np.ones(2**58)

  def test_fetching_a_failed_computation_raises(self):
    code = (
        'import jax, jax.numpy as jnp\n'
        'from rnnzoo.training import memory\n'
        'f = jax.jit(lambda: (jnp.ones((2**24, 2**24)), jnp.int32(3)))\n'
        'with memory.readable_errors():\n'
        '  int(memory.fetch(f()[1]))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True,
        timeout=60, cwd=pathlib.Path(__file__).parents[2], check=False,
    )
    self.assertRegex(
        done.stderr, r'Out of memory: 1.0 PiB were asked for at once, there'
    )


if __name__ == '__main__':
  absltest.main()
