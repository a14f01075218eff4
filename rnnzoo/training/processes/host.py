"""Settings of the whole process, which programs make when they start.

Nothing here happens at import: programs call these functions, libraries do not.
"""

import ctypes
import os
import pathlib
import platform
import sys
import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache
from rnnzoo import filenames

# glibc's malloc.h, as (parameter, value).
_MALLOC_OPTIONS = (
    (-4, 0),  # M_MMAP_MAX: large arrays get no mappings of their own
    (-1, -1),  # M_TRIM_THRESHOLD: give nothing back to the system
    (-2, 256 * 2**20),  # M_TOP_PAD: grow in large pieces
    (-8, 1),  # M_ARENA_MAX: one heap for all threads
)
_MADV_HUGEPAGE = 14  # Of Linux's mman.h.
_HUGE_PAGES = '/sys/kernel/mm/transparent_hugepage/enabled'


def pin_malloc() -> bool:
  """Makes malloc keep freed memory, which speeds up large arrays on a CPU.

  By default glibc maps each large array anew and unmaps it when it is freed,
  and the kernel clears each page on first use. Memory-bound programs spend more
  time there than on their own work: a scan over arrays of more than 32 MiB runs
  2.5 to 4 times faster without it. The cost is that the process never gives
  memory back to the system.

  Where the kernel gives huge pages only to programs that ask for them, as
  Ubuntu's does, this function asks for them. A training step of a Transformer
  that needs 9 GB then takes 4.0 s instead of 6.4 s.

  Returns:
    Whether malloc was changed: only under Linux with glibc.
  """
  if platform.system() != 'Linux':
    return False
  try:
    libc = ctypes.CDLL('libc.so.6')
  except OSError:
    return False
  if not hasattr(libc, 'gnu_get_libc_version'):  # It is another libc.
    return False
  done = [libc.mallopt(option, value) for option, value in _MALLOC_OPTIONS]
  if all(done):
    _ask_for_huge_pages(libc)
  return all(done)


def _ask_for_huge_pages(libc):
  """Makes the heap of malloc grow in huge pages, if they are to be had.

  glibc can ask for them only through an environment variable that it reads when
  the process starts. This function makes the heap as large as three quarters of
  the machine's memory instead, marks these addresses, and frees them. They take
  no memory until they are used.
  """
  import resource  # Not on Windows.

  try:
    enabled = pathlib.Path(_HUGE_PAGES).read_text()
    # 2: the kernel counts addresses that are not in use as memory.
    overcommit = pathlib.Path('/proc/sys/vm/overcommit_memory').read_text()
  except OSError:
    return
  limits = [
      resource.getrlimit(limit)[0] != resource.RLIM_INFINITY
      for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
  ]
  if '[madvise]' not in enabled or overcommit.strip() == '2' or any(limits):
    return
  page = os.sysconf('SC_PAGE_SIZE')
  size = os.sysconf('SC_PHYS_PAGES') * page * 3 // 4
  libc.malloc.restype = ctypes.c_void_p
  libc.malloc.argtypes = [ctypes.c_size_t]
  libc.free.argtypes = [ctypes.c_void_p]
  libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
  start = libc.malloc(size)
  if start:
    first = -(-start // page) * page
    libc.madvise(first, start + size - first, _MADV_HUGEPAGE)
    libc.free(start)


def make_deterministic() -> None:
  """Makes two runs of a program on the same machines equal in every bit.

  Call it before JAX computes anything. It sets:

  * GPU: `--xla_gpu_deterministic_ops=true` in `XLA_FLAGS`, unless the variable
    has that option already. XLA then adds in a fixed order instead of letting
    threads race (the sum that matters here is the gradient of an embedding),
    refuses operations that have no fixed order, and chooses kernels by rule
    instead of by measured time. That costs speed.
  * TPU and CPU: nothing. Programs of XLA add in a fixed order there.

  Everything else depends on the config alone: batches and dropout on seed and
  step, the decision to skip a step on its loss. Another device, mesh, version
  of JAX or number of CPU cores may still round differently.
  """
  option = '--xla_gpu_deterministic_ops'
  words = os.environ.get('XLA_FLAGS', '').split()
  if not any(word.split('=')[0] == option for word in words):
    os.environ['XLA_FLAGS'] = ' '.join(words + [f'{option}=true'])


def _cpu_name() -> str:
  try:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.split(':', 1)[1].strip()
  except OSError:
    pass  # Not Linux.
  return platform.processor() or platform.machine()


def device_description() -> str:
  """Returns a name of the devices that JAX uses, for records of results.

  Returns:
    For instance `'gpu x 8 (NVIDIA H100)'` or `'cpu x 1 (AMD EPYC, 2 cores)'`,
    with the number of devices of all processes.
  """
  devices = jax.devices()
  kind = devices[0].device_kind
  if devices[0].platform == 'cpu':
    count = os.cpu_count()
    if hasattr(os, 'sched_getaffinity'):  # The cores this process may use.
      count = len(os.sched_getaffinity(0))
    kind = f'{_cpu_name()}, {count} core{"s" if count != 1 else ""}'
  return f'{devices[0].platform} x {len(devices)} ({kind})'


def peak_memory() -> int:
  """Returns the largest memory of this process so far, in bytes."""
  import resource  # Not on Windows.

  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * (1 if sys.platform == 'darwin' else 1024)


def enable_compilation_cache(directory=None) -> pathlib.Path | None:
  """Lets JAX keep compiled programs on disk, so that a second run starts fast.

  Args:
    directory: Where to keep them. If `None`, the directory of
      `JAX_COMPILATION_CACHE_DIR` or of an earlier call, or else one in the
      user's cache directory.

  Returns:
    The directory, or `None` if it cannot be made and nothing is kept.
  """
  configured = jax.config.values['jax_compilation_cache_dir']
  if directory is None and configured is None:
    cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    directory = pathlib.Path(cache) / 'rnnzoo' / 'jax'
  directory = str(configured if directory is None else directory)
  if '://' not in directory:
    directory = filenames.absolute(directory)
    try:
      os.makedirs(directory, exist_ok=True)
    except OSError:
      return None
  jax.config.update('jax_compilation_cache_dir', directory)
  # Keep programs of all sizes: a small model consists of many small ones.
  for option, value in (
      ('jax_persistent_cache_min_compile_time_secs', 0),
      ('jax_persistent_cache_min_entry_size_bytes', -1),
  ):
    if option.upper() not in os.environ:
      jax.config.update(option, value)
  # JAX decides when it first compiles whether there is a cache: ask it again.
  compilation_cache.reset_cache()
  # A file that a killed process left half written costs one compilation.
  warnings.filterwarnings(
      'ignore', message='Error reading persistent compilation cache entry'
  )
  return pathlib.Path(directory)
