"""The memory that a run needs and the memory there is, and readable errors."""

from collections.abc import Iterator
import contextlib
import ctypes
import math
import pathlib
import re
from typing import Any, NamedTuple

from absl import logging
import jax
from rnnzoo import errors

_CGROUP_MOUNTS = {  # By version: where the memory controller is mounted.
    1: pathlib.Path('/sys/fs/cgroup/memory'),
    2: pathlib.Path('/sys/fs/cgroup'),
}
_CGROUP_FILES = {  # Limit, use, prefix of what the kernel can reclaim.
    1: ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_'),
    2: ('memory.max', 'memory.current', ''),
}


class Room(NamedTuple):
  """The memory that may still be allocated.

  Attributes:
    bytes: How many bytes may still be allocated.
    limit: What sets the limit, for messages.
  """

  bytes: int
  limit: str

  def __str__(self):
    return f'{_text(self.bytes)} ({self.limit})'


def on_host() -> Room | None:
  """Returns what this process may still allocate; `None` if unknown.

  It is the smallest of these: the memory and swap that the machine has
  available, the limits of the process's control groups (version 1 or 2),
  `ulimit -v` and `ulimit -d`. Free memory that malloc holds, as after
  `host.pin_malloc`, is added.
  """
  rooms = [*_of_machine(), *_of_cgroups(), *_of_ulimits()]
  if not rooms:
    return None
  room = min(rooms)
  return room._replace(bytes=room.bytes + _free_in_malloc())


def on_device(device) -> Room | None:
  """Returns what may still be allocated on a device; `None` if unknown."""
  if device.platform == 'cpu':
    return on_host()
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  free = stats['bytes_limit'] - stats.get('bytes_in_use', 0)
  return Room(max(0, free), f'memory of {device.device_kind}')


def check(tree: Any, what: str, advice: str) -> None:
  """Refuses arrays that cannot fit, before they are allocated.

  Args:
    tree: A tree of `jax.ShapeDtypeStruct`s; those without `sharding` count for
      the first device.
    what: The subject of the message, in the plural, such as `The parameters`.
    advice: What to do, a sentence.

  Raises:
    UserError: If they need more than a device of this process has room for.
  """
  device = jax.local_devices()[0]
  needed, room = _needed(tree, device), on_device(device)
  if room is not None and needed > room.bytes:
    raise errors.UserError(
        f'{what} need {_text(needed)}, and there is room for {room}. {advice}'
    )


def warn_of_step(compiled) -> None:
  """Warns if the temporary memory of a compiled step may not fit.

  Args:
    compiled: From `jax.stages.Lowered.compile`.
  """
  try:
    temporary = compiled.memory_analysis().temp_size_in_bytes
  except Exception:  # Some backends do not know; each raises another error.
    return
  device = jax.local_devices()[0]
  temporary *= _sharing(device)
  room = on_device(device)
  if room is not None and temporary > room.bytes:
    logging.warning(
        'A training step needs %s in addition to its state, and there is room '
        'for %s: it may run out of memory. Use a smaller batch_size, more '
        'accumulate_steps, or model.remat=full.',
        _text(temporary), room,
    )


def fetch(tree: Any) -> Any:
  """Returns arrays as NumPy arrays; raises if their computation failed.

  `int`, `float`, `np.asarray` and `jax.device_get` wait forever for an array
  whose computation ran out of memory; `jax.block_until_ready` raises.
  """
  return jax.device_get(jax.block_until_ready(tree))


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
  """Turns an error that memory is exhausted into a `UserError` of one line."""
  try:
    yield
  except errors.UserError:
    raise
  except (MemoryError, RuntimeError) as error:
    if not is_exhausted(error):
      raise
    asked = re.search(
        r'(?:alloc\w*) (?P<size>[\d.]+) ?(?P<unit>[KMGTP]?i?B|bytes)',
        str(error),
    )
    size = 0
    if asked:
      power = 'BKMGTP'.index(asked['unit'][0].upper())
      size = float(asked['size']) * 1024**power
    room = on_device(jax.local_devices()[0])
    raise errors.UserError(
        'Out of memory'
        + (f': {_text(size)} were asked for at once' if size else '')
        + (f', there is room for {room}' if room and size > room.bytes else '')
        + '. Use a smaller model, batch_size or data.sequence_length, or shard '
        'the model over more devices (mesh).'
    ) from error


def is_exhausted(error: BaseException) -> bool:
  """Returns whether an error says that memory is exhausted."""
  text = str(error)
  return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and (
      'RESOURCE_EXHAUSTED' in text or 'Out of memory' in text
  )


def _needed(tree, device):
  """Returns the bytes that a tree needs in the memory of `device`."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    sharding, copies = getattr(leaf, 'sharding', None), 1
    shape = leaf.shape
    if sharding is not None:
      shape = sharding.shard_shape(shape)
      if device.platform == 'cpu':
        copies = len(sharding.addressable_devices)
    total += math.prod(shape) * leaf.dtype.itemsize * copies
  return total


def _sharing(device):
  """Returns how many devices of this process share the memory of `device`."""
  return jax.local_device_count() if device.platform == 'cpu' else 1


def _text(count):
  """Returns a number of bytes as people read it.

  >>> _text(5_000_000_000_000)
  '4.5 TiB'
  """
  units = ('bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')
  power = min(int(math.log(max(count, 1), 1024)), len(units) - 1)
  digits = 1 if power else 0
  return f'{count / 1024**power:.{digits}f} {units[power]}'


def _of_machine():
  found = _table('/proc/meminfo')
  if 'MemAvailable:' in found:
    kib = found['MemAvailable:'] + found.get('SwapFree:', 0)
    yield Room(1024 * kib, 'what the machine has free')


def _of_cgroups():
  for line in _read('/proc/self/cgroup').splitlines():
    number, controllers, name = line.split(':', 2)
    if 'memory' in controllers.split(','):
      version = 1
    elif number == '0' and not controllers:
      version = 2
    else:
      continue
    # The limits of the groups above hold too. In a container its own group may
    # be mounted at the place of the root.
    path = pathlib.PurePath(name.lstrip('/'))
    for group in (path, *path.parents):
      yield from _of_cgroup(_CGROUP_MOUNTS[version] / group, version)


def _of_cgroup(directory, version):
  limit, used, prefix = _CGROUP_FILES[version]
  try:
    limit = int(_read(directory / limit))
    used = int(_read(directory / used))
  except ValueError:  # There is no such group, or the limit is 'max'.
    return
  stat = _table(directory / 'memory.stat')
  # The kernel frees the caches of files, and its own, when memory is needed.
  cached = stat.get('slab_reclaimable', 0) + sum(
      stat.get(f'{prefix}{name}_file', 0) for name in ('inactive', 'active')
  )
  yield Room(max(0, limit - used + cached), 'the limit of its control group')


def _of_ulimits():
  try:
    import resource  # Not on Windows.
  except ImportError:
    return
  pages = _read('/proc/self/statm').split()
  for name, option, field in (('AS', 'v', 0), ('DATA', 'd', 5)):
    limit, _ = resource.getrlimit(getattr(resource, f'RLIMIT_{name}'))
    if limit != resource.RLIM_INFINITY and pages:
      used = int(pages[field]) * resource.getpagesize()
      yield Room(max(0, limit - used), f'ulimit -{option}')


class _MallInfo2(ctypes.Structure):
  _fields_ = [
      (name, ctypes.c_size_t) for name in (
          'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks',
          'fsmblks', 'uordblks', 'fordblks', 'keepcost',
      )
  ]


def _free_in_malloc() -> int:
  """Returns the unused memory that glibc holds; 0 with other libraries.

  Addresses of its heap that never were in use are not memory yet.
  """
  try:
    mallinfo2 = ctypes.CDLL('libc.so.6').mallinfo2
  except (OSError, AttributeError):
    return 0
  mallinfo2.restype = _MallInfo2
  return max(0, mallinfo2().fordblks - _untouched_heap())


def _untouched_heap():
  """Returns the bytes of the heap's addresses that have no memory yet."""
  untouched, in_heap = 0, False
  for line in _read('/proc/self/smaps').splitlines():
    words = line.split()
    if not words[0].endswith(':'):  # The first line of a mapping.
      in_heap = words[-1] == '[heap]'
    elif in_heap and words[0] in ('Size:', 'Rss:', 'Swap:'):
      sign = 1 if words[0] == 'Size:' else -1
      untouched += sign * int(words[1]) * 1024
  return untouched


def _read(path):
  try:
    return pathlib.Path(path).read_text()
  except OSError:
    return ''


def _table(path):
  """Reads a file whose lines are a name and a number."""
  rows = (line.split() for line in _read(path).splitlines())
  return {
      row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()
  }
