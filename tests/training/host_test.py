"""Tests of `processes.host`, whose settings each take a process."""

import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from rnnzoo.training.processes import host


def run(program, **environment):
  """Runs a program without the settings that the tests themselves have."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True,
      check=False, env={**kept, **environment},
  )
  if done.returncode:
    raise AssertionError(done.stderr)
  return done.stdout.split(), done.stderr


class HostTest(parameterized.TestCase):

  def test_pin_malloc_keeps_freed_memory(self):
    if platform.libc_ver()[0] != 'glibc':
      self.assertFalse(host.pin_malloc())
      self.skipTest('Only glibc has mallopt.')
    program = """
import resource
import numpy as np
from rnnzoo.training.processes import host

def page_faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(4):
    np.full(2**26, 1, np.uint8)  # 64 MiB, freed at once
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(page_faults(), host.pin_malloc(), page_faults(), page_faults())
"""
    (before, done, _, after), _ = run(program)
    self.assertEqual(done, 'True')
    self.assertGreater(int(before), 100)  # With huge pages 128, else 65536.
    self.assertLess(int(after), 16)

  def test_pin_malloc_asks_for_huge_pages(self):
    enabled = pathlib.Path(host._HUGE_PAGES)
    if not enabled.exists() or '[madvise]' not in enabled.read_text():
      self.skipTest('The kernel gives them to all programs, or to none.')
    program = """
import re
import numpy as np
from rnnzoo.training import memory
from rnnzoo.training.processes import host

def smaps(key):
  with open('/proc/self/smaps') as file:
    return sum(int(x) for x in re.findall(rf'{key}: *(\\d+) kB', file.read()))

room = memory.on_host().bytes
host.pin_malloc()
print(abs(memory.on_host().bytes - room), smaps('Rss'))
array = np.full(2**27, 1, np.uint8)  # 128 MiB
print(smaps('AnonHugePages'))
"""
    (reserved, resident, huge), _ = run(program)
    # Addresses are not memory.
    self.assertLess(int(reserved), 2**29)
    self.assertLess(int(resident), 2**20)
    self.assertGreater(int(huge), 100 * 2**10)

  def test_huge_pages_are_not_asked_for_under_a_limit(self):
    if platform.libc_ver()[0] != 'glibc':
      self.skipTest('Only glibc has mallopt.')
    program = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))
from rnnzoo.training.processes import host
print(host.pin_malloc(), open('/proc/self/statm').read().split()[0])
"""
    (done, pages), _ = run(program)
    self.assertEqual(done, 'True')
    self.assertLess(int(pages) * os.sysconf('SC_PAGE_SIZE'), 2**32)

  def test_device_description(self):
    self.assertRegex(host.device_description(), r'^\w+ x \d+ \(.*\S.*\)$')

  def test_compiled_programs_are_kept_on_disk(self):
    with tempfile.TemporaryDirectory() as directory:
      program = """
import jax
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: x - 1)(3.0)  # Too early; must not turn the cache off.
from rnnzoo.training.processes import host
print(host.enable_compilation_cache())
print(jax.jit(lambda x: 3 * x + 1)(2.0), jax.jit(lambda x: x * x)(4.0))
print(sum(name.endswith('/cache_hits') for name in hits))
"""
      cache = pathlib.Path(directory) / 'rnnzoo' / 'jax'
      environment = {'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': directory}
      output, _ = run(program, **environment)
      self.assertEqual(output, [str(cache), '7.0', '16.0', '0'])
      files = sorted(cache.glob('*-cache'))
      self.assertGreater(len(files), 1)
      # Cut short by a killed process.
      files[0].write_bytes(files[0].read_bytes()[:50])
      environment |= {
          'XDG_CACHE_HOME': '/dev/null', 'JAX_COMPILATION_CACHE_DIR': str(cache)
      }
      output, messages = run(program, **environment)
      self.assertEqual(output[:3], [str(cache), '7.0', '16.0'])
      self.assertEqual(int(output[3]), len(files) - 1)
      self.assertEmpty(messages)

  @parameterized.parameters(
      ('', '--xla_gpu_deterministic_ops=true'),
      ('--xla_a=1', '--xla_a=1 --xla_gpu_deterministic_ops=true'),
      ('--xla_gpu_deterministic_ops=false',) * 2,
  )
  def test_make_deterministic_keeps_other_flags(self, before, after):
    with mock.patch.dict(os.environ, XLA_FLAGS=before):
      host.make_deterministic()
      host.make_deterministic()
      self.assertEqual(os.environ['XLA_FLAGS'], after)

  def test_a_cache_directory_that_cannot_be_made_is_not_used(self):
    with tempfile.NamedTemporaryFile() as file:
      self.assertIsNone(host.enable_compilation_cache(file.name + '/x'))


if __name__ == '__main__':
  absltest.main()
