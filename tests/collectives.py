"""What a compiled program sends from device to device."""

import collections
import math
import re

# For `jax.jit(compiler_options=)`: half the time, and the same collectives.
QUICKLY = dict(xla_backend_optimization_level=0)

_INSTRUCTION = re.compile(
    r' = (\(?\w+\[.*?) (all-gather|all-reduce|all-to-all|collective-permute|'
    r'reduce-scatter)(?:-start)?\('
)


def sizes(text: str, *, without: tuple[str, ...] = ()):
  """Returns `(kind, elements)` of each collective in a compiled program.

  Args:
    text: `compiled.as_text()`.
    without: Kinds that are of no interest, such as `all-reduce`.
  """
  return [
      (kind, max(map(_elements, re.findall(r'\w+\[([\d,]*)\]', result))))
      for result, kind in _INSTRUCTION.findall(text)
      if kind not in without
  ]


def counts(text: str) -> dict[str, int]:
  """Returns how many there are of each kind."""
  return dict(collections.Counter(kind for kind, _ in sizes(text)))


def _elements(shape):
  return math.prod(int(n) for n in shape.split(',') if n)
