"""Eight CPU devices and a compile cache, before JAX is imported."""

import collections
import gc
from importlib import metadata
import os
import pathlib

import pytest
from tests import quick

_CACHE = pathlib.Path(__file__).parents[1] / '.cache' / 'jax'

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Most programs of the tests run once: without its optimisations XLA compiles
# them in half the time. Versions that lack the second flag are tested with all
# optimisations, and so is every command that a test starts.
_VERSION = metadata.version('jax')
_QUICK = (
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false '
)
os.environ['XLA_FLAGS'] = (
    '--xla_force_host_platform_device_count=8 '
    + (_QUICK if _VERSION.startswith('0.10.') else '')
    + os.environ.get('XLA_FLAGS', '')  # The caller's word is the last.
)
# An entry of one version is noise to another.
os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(_CACHE / _VERSION)
)
# The tests compile hundreds of tiny programs: all of them are worth keeping.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

# JAX makes millions of objects while it traces, and few of them are garbage. At
# Python's own thresholds the search for garbage takes a fifth of the time.
gc.set_threshold(200_000, 50, 1000)


def pytest_addoption(parser):
  parser.addoption(
      '--quick', action='store_true',
      help='Leave out what takes long: for daily work, before the full suite.',
  )


def pytest_report_header(config):
  if config.getoption('quick'):
    return (
        'quick: without tests that are marked slow, and without '
        + ', '.join(quick.LEFT_OUT)
    )


def pytest_ignore_collect(collection_path, config):
  if not config.getoption('quick'):
    return None
  path = collection_path.relative_to(config.rootpath).as_posix()
  return path in quick.LEFT_OUT or None


def pytest_collection_modifyitems(config, items):
  if config.getoption('quick'):
    items[:] = [u for u in items if not u.get_closest_marker('slow')]


def pytest_collection_finish():
  # Modules and tests stay until the end: never look at them again.
  gc.collect()
  gc.freeze()


# Programs live as long as their process: gigabytes, in a suite like this. They
# are dropped rarely, because tests share the small ones.
_MEMORY, _TESTS = 2 * 2**30, 25
_since = 0


def pytest_runtest_teardown():
  global _since
  _since += 1
  if _since >= _TESTS and _resident_bytes() > _MEMORY:
    import jax  # After the environment is set.

    jax.clear_caches()
    gc.collect()
    _since = 0


def _resident_bytes():
  """Returns the memory of this process; infinity where nobody says it."""
  try:
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  except OSError:
    return float('inf')
  return pages * os.sysconf('SC_PAGE_SIZE')


# The CPU time of each test, with its fixtures and the processes that it waits
# for, is reported by file: where the time of the suite goes. Commands that are
# forked (see experiments/cli/processes.py) are not counted.
_CPU_SECONDS = 'cpu_seconds'
_started = pytest.StashKey[float]()
_files = collections.Counter()


def _cpu_seconds():
  used = os.times()
  return used.user + used.system + used.children_user + used.children_system


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  item.stash[_started] = _cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  report = yield
  if call.when == 'teardown':
    seconds = _cpu_seconds() - item.stash[_started]
    report.user_properties.append((_CPU_SECONDS, seconds))
  return report


def pytest_runtest_logreport(report):
  for name, value in report.user_properties:
    if name == _CPU_SECONDS and report.when == 'teardown':
      _files[report.nodeid.partition('::')[0]] += value


def pytest_terminal_summary(terminalreporter):
  if len(_files) < 2:
    return
  terminalreporter.section('slowest files, CPU seconds')
  for name, seconds in _files.most_common(10):
    terminalreporter.line(f'{seconds:7.1f}  {name}')
  terminalreporter.line(f'{sum(_files.values()):7.1f}  all {len(_files)} files')
