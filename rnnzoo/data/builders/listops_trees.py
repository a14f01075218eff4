"""The expressions of ListOps: random trees, their tokens and their values.

The task of "ListOps: A diagnostic dataset for latent tree learning" (Nangia and
Bowman, 2018), https://arxiv.org/abs/1804.06028, with the rules of "Long Range
Arena" (Tay et al., 2020), https://arxiv.org/abs/2011.04006. `MAX 2 9 MIN 4 7 X
0 X` is the larger of 2, 9, the smaller of 4 and 7, and 0: its value is 9.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

# A token is its place in this list. MED is the median, rounded down, SM the sum
# modulo 10, and X ends the arguments of an operator.
TOKENS = (*map(str, range(10)), 'MIN', 'MAX', 'MED', 'SM', 'X')
DIGITS = 10
OPERATORS = 4
END = TOKENS.index('X')


@dataclasses.dataclass(frozen=True)
class Rules:
  """Which trees there are, and which of them are kept.

  Attributes:
    max_depth: The depth of the deepest digits; the root has depth 1.
    max_args: An operator has 2 to `max_args` arguments, equally likely.
    operator_share: The probability that a node above `max_depth` is an
      operator. Any other node is a digit.
    above: An expression is kept if it has more tokens than this,
    below: and fewer than this.
  """

  max_depth: int = 10
  max_args: int = 10
  operator_share: float = 0.25
  above: int = 500
  below: int = 2000


class Expressions(NamedTuple):
  """Expressions, one after the other.

  Attributes:
    tokens: The tokens of all expressions, uint8 `[sum of lengths]`.
    lengths: How many tokens each expression has, int32 `[N]`.
    labels: The value of each, uint8 `[N]`.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  labels: np.ndarray


class _Level(NamedTuple):
  """All nodes of one depth, from left to right, tree by tree.

  The arguments of the operators are the nodes of the next level, in order.
  """

  tree: np.ndarray  # The number of the tree of each node, [n].
  is_operator: np.ndarray  # bool [n]
  arguments: np.ndarray  # The number of arguments of each operator.


def sample(
    rng: np.random.Generator, count: int, rules: Rules
) -> Expressions:
  """Draws `count` trees and returns those that the rules keep.

  >>> rules = Rules(max_depth=3, above=4, below=20)
  >>> found = sample(np.random.default_rng(0), 20, rules)
  >>> first = found.tokens[: found.lengths[0]]
  >>> print(*(TOKENS[token] for token in first), '=', found.labels[0])
  SM 2 7 2 SM 7 6 1 8 0 2 6 X X = 1
  """
  levels, lengths = _draw_shapes(rng, count, rules)
  kept = (lengths > rules.above) & (lengths < rules.below)
  levels = _only(levels, kept)
  tokens = [_draw_tokens(rng, level) for level in levels]
  sizes, labels = _evaluate(levels, tokens)
  lengths = lengths[kept].astype(np.int32)
  return Expressions(_write(levels, tokens, sizes), lengths, labels)


def _draw_shapes(rng, count, rules):
  """Returns the levels of `count` trees, and how many tokens each tree has.

  A tree that has too many tokens grows no further: its length is then at least
  `rules.below`, and its last level is missing.
  """
  levels, tree = [], np.arange(count)
  lengths = np.zeros(count, np.int64)
  for depth in range(1, rules.max_depth + 1):
    is_operator = np.zeros(len(tree), bool)
    if depth < rules.max_depth:
      is_operator = rng.random(len(tree), np.float32) < rules.operator_share
    parents = tree[is_operator]
    arguments = rng.integers(2, rules.max_args, len(parents), endpoint=True)
    lengths += np.bincount(tree, minlength=count)
    lengths += np.bincount(parents, minlength=count)
    levels.append(_Level(tree, is_operator, arguments))
    # Every argument is a token at least.
    least = lengths + np.bincount(parents, arguments, minlength=count)
    too_long = least >= rules.below
    lengths[too_long] = rules.below
    tree = np.repeat(parents, arguments * ~too_long[parents])
  return levels, lengths


def _only(levels, kept):
  """Returns the levels of the trees that are `kept`, bool `[count]`."""
  return [
      _Level(
          tree[kept[tree]],
          is_operator[kept[tree]],
          arguments[kept[tree[is_operator]]],
      )
      for tree, is_operator, arguments in levels
  ]


def _draw_tokens(rng, level):
  """Returns the token of each node of a level, uint8."""
  tokens = rng.integers(0, DIGITS, len(level.tree), np.uint8)
  tokens[level.is_operator] = DIGITS + rng.integers(
      0, OPERATORS, len(level.arguments), np.uint8
  )
  return tokens


def _evaluate(levels, tokens):
  """Returns how many tokens each node has, by level, and the labels."""
  sizes = []
  below_sizes = below_values = np.zeros(0, np.int64)
  for level, token in zip(levels[::-1], tokens[::-1], strict=True):
    size = np.ones(len(token), np.int64)
    value = token.copy()
    if len(level.arguments):
      starts = np.cumsum(level.arguments) - level.arguments
      size[level.is_operator] = 2 + np.add.reduceat(below_sizes, starts)
      value[level.is_operator] = _apply(
          token[level.is_operator] - DIGITS, level.arguments, below_values
      )
    sizes.append(size)
    below_sizes, below_values = size, value
  return sizes[::-1], below_values


def _apply(operator, arguments, values):
  """Returns the value of each operator, given those of its arguments."""
  exists = np.arange(arguments.max()) < arguments[:, None]
  rows = np.full(exists.shape, 255, np.uint8)
  rows[exists] = values
  total = np.where(exists, rows, 0).sum(1, dtype=np.uint8)
  rows.sort(axis=1)
  at = lambda column: rows[np.arange(len(rows)), column]
  middle = at((arguments - 1) // 2) + at(arguments // 2)
  return np.choose(
      operator,
      [rows[:, 0], at(arguments - 1), middle // 2, total % DIGITS],
  )


def _write(levels, tokens, sizes):
  """Returns the tokens of all trees, from left to right."""
  found = np.zeros(sizes[0].sum(), np.uint8)
  starts = np.cumsum(sizes[0]) - sizes[0]
  for depth, (level, token) in enumerate(zip(levels, tokens, strict=True)):
    found[starts] = token
    parents = starts[level.is_operator]
    found[parents + sizes[depth][level.is_operator] - 1] = END
    if not len(parents):
      break
    # An argument starts where the one before it ends, the first one after the
    # operator.
    size = sizes[depth + 1]
    before = np.cumsum(size) - size
    first = np.cumsum(level.arguments) - level.arguments
    starts = before + np.repeat(
        parents + 1 - before[first], level.arguments
    )
  return found
