"""The order of blocks as a text, such as `'gru;lru,gru'`, `ModelConfig.layer`.

Commas stand between blocks. Blocks before a semicolon stand once, and those
after it repeat up to the number of blocks. `a+b` is one block, whose layers
read the same features in parallel.
"""

from collections.abc import Sequence
import re


def is_valid(text: str) -> bool:
  """Returns whether a text has a name wherever one belongs.

  >>> is_valid('gru;lru,gru'), is_valid('gru,,lru'), is_valid('a;b;c')
  (True, False, False)
  """
  parts = text.split(';')
  return len(parts) <= 2 and all(
      name.strip() for part in parts for name in re.split('[,+]', part)
  )


def names(text: str) -> tuple[str, ...]:
  """Returns all names of blocks, in order, without spaces at their ends.

  >>> names('gru;lru, gru'), names('gla + lru')
  (('gru', 'lru', 'gru'), ('gla+lru',))
  """
  parts = text.replace(';', ',').split(',')
  return tuple('+'.join(parts_of(name)) for name in parts if name.strip())


def parts_of(name: str) -> tuple[str, ...]:
  """Returns the names of the layers that are in parallel in one block.

  >>> parts_of('mamba2+attention'), parts_of('lru')
  (('mamba2', 'attention'), ('lru',))
  """
  return tuple(part.strip() for part in name.split('+'))


def pattern(blocks: Sequence[str]) -> str:
  """Returns the shortest `ModelConfig.layer` that gives these blocks.

  A compiled model runs the rounds of a pattern in a loop, so its program does
  not grow with the depth if the pattern is short.

  >>> pattern(['lru', 'gru', 'lru', 'gru', 'lru']), pattern(['lru', 'gru'])
  ('lru,gru', 'lru,gru')
  >>> pattern(['gru', 'lru', 'lru', 'lru'])
  'gru;lru'
  """

  def period(rest):
    return next(
        n for n in range(1, len(rest) + 1)
        if all(name == rest[i % n] for i, name in enumerate(rest))
    )

  # The shortest of all, and of those the one with most in its rounds.
  _, first = min((i + period(blocks[i:]), i) for i in range(len(blocks)))
  rest = blocks[first:]
  parts = blocks[:first], rest[: period(rest)]
  return ';'.join(','.join(part) for part in parts if part)
