"""Reads compiled programs: their instructions, and how often each one runs.

The text is that of `compiled.as_text()`, for TPUs, GPUs and CPUs. It does not
always contain the number of rounds of a loop, but the loop's counter gives it.
"""

import collections
from collections.abc import Iterator
import dataclasses
import math
import re
from typing import NamedTuple

_BYTES = dict(
    pred=1, s4=0.5, u4=0.5, s8=1, u8=1, s16=2, u16=2, f16=2, bf16=2, s32=4,
    u32=4, f32=4, s64=8, u64=8, f64=8, c64=8, c128=16,
)
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{\s*$')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_ARRAY = re.compile(r'\b(pred|bf16|[suf]\d+|c64|c128|f8\w+)\[([\d,]*)\]'
                    r'(\{[^}]*\})?')


class Instruction(NamedTuple):
  """One line: `ROOT %name = shape opcode(text), attributes`."""

  name: str
  shape: str
  opcode: str
  text: str  # Between the parentheses.
  attributes: str
  root: bool

  @property
  def operands(self) -> list[str]:
    """The names of the instructions whose results it reads."""
    return re.findall(r'%([\w.\-]+)', self.text)

  def called(self, *keys) -> list[str]:
    """The computations that attributes of these names refer to."""
    found = []
    for key in keys:
      for names in re.findall(
          rf'\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)', self.attributes
      ):
        found += re.findall(r'[\w.\-]+', names)
    return found


@dataclasses.dataclass(frozen=True)
class Loop:
  """A loop; `rounds` is `None` if the text does not show it."""

  name: str
  rounds: int | None


class Program:
  """A compiled program, with the number of times each computation runs.

  Attributes:
    computations: Instructions by name, by the name of the computation.
    entry: The name of the computation that runs first.
    times: How often each computation runs.
    fused: The names of the computations that are part of one instruction.
    loops: All loops that run.
  """

  def __init__(self, text: str):
    """Reads `compiled.as_text()`."""
    self.computations, self.entry = _parse(text)
    self.times, self.fused = collections.Counter(), set()
    self.loops = []
    self._visit(self.entry, 1, False)

  def _visit(self, name, times, fused):
    if name not in self.computations:
      return
    self.times[name] += times
    if fused:
      self.fused.add(name)
    for one in self.computations[name].values():
      rounds = 1
      if one.opcode == 'while':
        rounds = _rounds(self.computations, name, one)
        self.loops.append(Loop(one.name, rounds))
        rounds = 1 if rounds is None else rounds
      for body in one.called('calls', 'called_computations'):
        self._visit(body, times, True)
      for body in one.called(
          'body', 'branch_computations', 'true_computation',
          'false_computation', *['to_apply'] * (one.opcode == 'call'),
      ):
        self._visit(body, times * rounds, fused)


def _parse(text):
  computations, current, entry = {}, None, None
  for line in re.finditer(r'.+', text):
    line = line[0]
    if not line.startswith(' '):
      found = _COMPUTATION.match(line)
      if found:
        current = computations[found[2]] = {}
        entry = found[2] if found[1] else entry
      elif line.startswith('}'):
        current = None
      continue
    found = _INSTRUCTION.match(line)
    if current is None or not found:
      continue
    rest = found[3]
    # A shape is one word, or a tuple of them.
    end = _closing(rest, 0) if rest.startswith('(') else rest.find(' ')
    shape, rest = rest[:end].strip(), rest[end:].lstrip()
    opcode, _, _ = rest.partition('(')
    end = _closing(rest, len(opcode))
    # Leave out the text of kernels, which is long.
    attributes = re.sub(
        r'backend_config=(?!.*known_trip_count).*', '', rest[end:]
    )
    current[found[2]] = Instruction(
        found[2], shape, opcode, rest[len(opcode) + 1 : end - 1], attributes,
        bool(found[1]),
    )
  return computations, entry


def _closing(text, start):
  """Returns the index after the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i + 1
  return len(text)


def arrays(shape: str) -> Iterator[tuple[str, float, bool]]:
  """Yields for each array its type, bytes, and whether it stays on the chip."""
  for dtype, sizes, layout in _ARRAY.findall(shape):
    count = math.prod(int(n) for n in sizes.split(',') if n)
    on_chip = bool(re.search(r'S\([1-9]\)', layout))
    yield f'{dtype}[{sizes}]', count * _BYTES.get(dtype, 1), on_chip


def root(computation: dict[str, Instruction]) -> Instruction:
  """Returns the instruction whose result is the result of a computation."""
  return next(one for one in computation.values() if one.root)


def _rounds(computations, name, loop):
  """Returns how often the body of a loop runs, or `None`."""
  known = re.search(r'known_trip_count\D*(\d+)', loop.attributes)
  if known:
    return int(known[1])
  (condition,), (body,) = loop.called('condition'), loop.called('body')
  index, bound, inclusive = _limit(computations[condition])
  if index is None:
    return None
  around = computations[name]
  start = around.get(loop.operands[0])
  start = start and _constant(around, _element(start, index))
  step = _step(computations[body], index)
  if bound is None or start is None or not step:
    return None
  return max(0, math.ceil((bound - start + inclusive) / step))


def _limit(condition):
  """Returns the index of the counter in the state, its bound, if inclusive."""
  compare = root(condition)
  if compare.opcode != 'compare':
    return None, None, False
  counter, bound = compare.operands
  index = re.search(r'index=(\d+)', condition[counter].attributes)
  return (
      index and int(index[1]),
      _constant(condition, bound),
      'direction=LE' in compare.attributes,
  )


def _constant(computation, name):
  """Returns the value of an integer constant, or `None`."""
  one = computation.get(name)
  while one and one.opcode in ('copy', 'bitcast', 'convert'):
    one = computation.get(one.operands[0])
  if one and one.opcode == 'constant' and re.fullmatch(r'-?\d+', one.text):
    return int(one.text)
  return None


def _element(one, index):
  """Returns the name of an element of a tuple."""
  return one.operands[index] if one.opcode == 'tuple' else ''


def _step(body, index):
  """Returns what a round adds to the counter: several if it is unrolled."""
  step, one = 0, body.get(_element(root(body), index))
  while one and one.opcode in ('add', 'copy'):
    before = one.operands[0]
    if one.opcode == 'add':
      amounts = {name: _constant(body, name) for name in one.operands}
      added = {n: u for n, u in amounts.items() if u is not None}
      if len(amounts) != 2 or len(added) != 1:
        return 0
      step += sum(added.values())
      (before,) = amounts.keys() - added.keys()
    one = body.get(before)
  return step
