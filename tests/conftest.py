"""Eight CPU devices and a compile cache, before JAX is imported."""

from importlib import metadata
import itertools
import os
import pathlib

_CACHE = pathlib.Path(__file__).parents[1] / '.cache' / 'jax'

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
    '--xla_force_host_platform_device_count=8 '
    + os.environ.get('XLA_FLAGS', '')  # The caller's word is the last.
)
# An entry of one version is noise to another.
os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(_CACHE / metadata.version('jax'))
)
# The tests compile hundreds of tiny programs: all of them are worth keeping.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

_ran = itertools.count(1)


def pytest_runtest_teardown():
  # Programs live as long as their process: gigabytes, in a suite like this.
  if next(_ran) % 25 == 0:
    import jax  # After the environment is set.

    jax.clear_caches()
