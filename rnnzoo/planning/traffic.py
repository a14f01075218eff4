"""The bytes that a compiled program moves between devices and in memory."""

import dataclasses
import math
import re

import numpy as np
from rnnzoo.planning import hlo

_KINDS = (
    'all-gather', 'all-reduce', 'all-to-all', 'collective-broadcast',
    'collective-permute', 'ragged-all-to-all', 'reduce-scatter',
)
# Instructions that move nothing, or whose parts count elsewhere.
_STILL = (
    'after-all', 'bitcast', 'call', 'conditional', 'constant', 'domain',
    'get-tuple-element', 'opt-barrier', 'parameter', 'partition-id',
    'replica-id', 'tuple', 'while',
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective operation, and what each device sends in it.

  Attributes:
    kind: The operation, such as `all-gather`.
    shape: The shape of its result.
    group: The devices of the first group, by their place in the mesh.
    times: How often it runs in one step.
    size: Bytes that a device sends in one run.
    source: The operation of the model that it comes from, if the compiler says.
  """

  kind: str
  shape: str
  group: tuple[int, ...]
  times: int
  size: float
  source: str


def collectives(program: hlo.Program, devices: int) -> list[Collective]:
  """Returns the collective operations of a program.

  Args:
    program: The compiled program.
    devices: How many devices run it.
  """
  found = {}
  for computation, instructions in program.computations.items():
    times = program.times[computation]
    if not times:
      continue
    for one in instructions.values():
      kind = one.opcode.removesuffix('-start')
      if kind not in _KINDS:
        continue
      key = computation, one.name
      if computation in program.fused and 'reduce-scatter' not in computation:
        # Several pieces are one asynchronous operation: its start, what it
        # overlaps with, its end. The channel is not enough to recognise them:
        # all operations of a `jax.shard_map` have the same one.
        channel = re.search(r'channel_id=(\d+)', one.attributes)
        sizes = tuple(size for _, size, _ in hlo.arrays(one.shape))
        key = kind, sizes, _source(one), channel and channel[1]
      if key not in found:
        found[key] = _collective(kind, one, computation, times, devices)
  return list(found.values())


def _source(one):
  found = re.search(r'op_name="([^"]*)"', one.attributes)
  return found[1] if found else ''


def bytes_moved(program: hlo.Program) -> float:
  """Estimates the bytes that a device reads from and writes to its memory.

  An instruction that is not fused into another one reads its operands and
  writes its result once; a slice reads only its part. Arrays that the compiler
  keeps on the chip do not count.
  """
  total = 0.0
  for name, instructions in program.computations.items():
    if name not in program.fused:
      total += program.times[name] * sum(
          _moved(program, one, instructions) for one in instructions.values()
      )
  return total


def is_still(opcode: str) -> bool:
  """Whether an instruction moves nothing, or its parts count elsewhere."""
  return opcode in _STILL or opcode.endswith('-done')


def _moved(program, one, instructions):
  shapes = [
      instructions[name].shape if name in instructions else ''
      for name in one.operands
  ]
  if is_still(one.opcode):
    return 0.0
  if one.opcode == 'fusion-start':  # Its result contains its operands too.
    body = program.computations[one.called('calls')[0]]
    return _moved_by_fusion(
        program, body, shapes, _size(hlo.root(body).shape)
    )
  if one.opcode.endswith('-start'):  # Likewise.
    if 'slice' not in one.opcode:
      return _size(one.shape)
    place = 1 if 'update' in one.opcode else len(one.operands)
    _, size, on_chip = list(hlo.arrays(one.shape))[place]
    return size if on_chip else 2 * size
  if one.opcode in ('dynamic-slice', 'gather', 'slice'):
    return 2 * _size(one.shape)
  if one.opcode == 'dynamic-update-slice':
    return 2 * _size(shapes[1])
  if one.opcode != 'fusion':
    return _size(one.shape) + sum(map(_size, shapes))
  body = program.computations[one.called('calls')[0]]
  return _moved_by_fusion(program, body, shapes, _size(one.shape))


def _moved_by_fusion(program, body, shapes, whole):
  """Returns what a fusion moves whose result has `whole` bytes."""
  read = sum(_read(program, body, i, u) for i, u in enumerate(shapes))
  return read + _written(program, body, hlo.root(body), whole)


def _size(shape):
  """Returns the bytes of a shape that are not on the chip."""
  return sum(size for _, size, on_chip in hlo.arrays(shape) if not on_chip)


def _read(program, body, index, shape):
  """Returns the bytes that a fusion reads from its operand number `index`."""
  whole, found = _size(shape), 0.0
  for one in body.values():
    if one.opcode == 'parameter' and int(one.text) == index:
      found += _read_by_users(program, body, one.name, whole)
  return min(found, whole)


def _read_by_users(program, body, name, whole):
  total = 0.0
  for one in body.values():
    places = [i for i, operand in enumerate(one.operands) if operand == name]
    if not places:
      continue
    if one.opcode in ('dynamic-slice', 'gather', 'slice') and places == [0]:
      total += _size(one.shape)
    elif one.opcode == 'tuple' and one.root:
      pass  # It is passed on and not read.
    elif one.opcode == 'bitcast':
      total += _read_by_users(program, body, one.name, whole)
    elif one.opcode == 'fusion':
      inner = program.computations[one.called('calls')[0]]
      shape = body[name].shape
      total += sum(_read(program, inner, i, shape) for i in places)
    elif one.opcode != 'dynamic-update-slice' or places != [0]:
      return whole  # An update in place would not read it.
  return total


def _written(program, body, root, whole):
  """Returns the bytes that a fusion writes; its result has `whole` bytes."""
  if root.opcode == 'parameter':
    return 0.0
  if root.opcode == 'tuple':
    parts = [body[name] for name in root.operands]
    # Only the whole result shows which parts are on the chip.
    return min(
        whole, sum(_written(program, body, u, _size(u.shape)) for u in parts)
    )
  if root.opcode == 'bitcast' and root.operands[0] in body:
    return _written(program, body, body[root.operands[0]], whole)
  if root.opcode == 'fusion':
    inner = program.computations[root.called('calls')[0]]
    return _written(program, inner, hlo.root(inner), whole)
  if root.opcode == 'dynamic-update-slice' and root.operands[1] in body:
    return min(_size(body[root.operands[1]].shape), whole)
  return whole


def _collective(kind, one, computation, times, devices):
  arrays = list(hlo.arrays(one.shape))
  if one.opcode.endswith('-start') and kind != 'all-reduce':
    # It has operands, results, and sometimes a token to wait for.
    arrays = [a for a in arrays if a[0] != 'u32[]']
    arrays = arrays[len(arrays) // 2 :]
  size = sum(array[1] for array in arrays)
  group = _group(one.attributes, devices)
  count = len(group)
  if kind == 'all-reduce' and 'reduce-scatter' in computation:
    # On TPUs this is a fusion: a sum, of which each device takes its part.
    kind, size = 'reduce-scatter', size / count
  if kind in ('all-gather', 'all-to-all', 'ragged-all-to-all'):
    size *= (count - 1) / count
  elif kind == 'all-reduce':
    size *= 2 * (count - 1) / count
  elif kind == 'reduce-scatter':
    size *= count - 1
  return Collective(
      kind, ' '.join(array[0] for array in arrays), group, times, size,
      _source(one),
  )


def _group(attributes, devices):
  """Returns the first group of devices; there are several notations."""
  found = re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', attributes)
  if found:
    return int(found[1]), int(found[2])
  # mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}: the devices along b.
  found = re.search(
      r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? '
      r'\{([^}]*)\}',
      attributes,
  )
  if found:
    sizes = {n: int(s) for n, s in re.findall(r"'(\w+)'=(\d+)", found[1])}
    along = [n for n in sizes if f"'{n}'" in found[3]]
    ids = np.arange(math.prod(sizes.values()))
    if found[2]:
      ids = _numbered(found[2])
    ids = np.moveaxis(
        ids.reshape(*sizes.values()), [list(sizes).index(n) for n in along],
        range(len(sizes) - len(along), len(sizes)),
    )
    count = math.prod(sizes[n] for n in along)
    return tuple(ids.reshape(-1, count)[0].tolist())
  # [2,4]<=[4,2]T(1,0): two groups of four.
  found = re.search(r'replica_groups=\[\d+,(\d+)\]<=(\S+)', attributes)
  if found:
    return tuple(_numbered(found[2])[: int(found[1])].tolist())
  found = re.search(r'replica_groups=\{\{([\d,]+)\}', attributes)
  if found:
    return tuple(int(n) for n in found[1].split(','))
  return tuple(range(devices))


def _numbered(text):
  """Returns the devices of `[4,2]T(1,0)`: 0 to 7 as `[4, 2]`, transposed."""
  ((sizes, order),) = re.findall(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
  numbers = lambda text: [int(n) for n in text.split(',')]
  ids = np.arange(math.prod(numbers(sizes))).reshape(numbers(sizes))
  return (ids.transpose(numbers(order)) if order else ids).ravel()
