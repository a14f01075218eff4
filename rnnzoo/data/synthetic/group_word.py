"""Word problems of groups: the running product of group elements.

The test of state tracking of "The illusion of state in state-space models"
(Merrill et al. 2024, https://arxiv.org/abs/2404.08819; generator
https://github.com/jopetty/word-problem): the input is a sequence of elements
`x_1, ..., x_T`, each drawn uniformly from a group, and the target of step t is
the product `x_1 x_2 ... x_t`.

`data.group` is a cyclic group `Z<n>`, a symmetric group `S<n>`, an alternating
group `A<n>`, or a direct product such as `A4_x_Z5`, with at most 120 elements.
The paper compares the three groups of order 60, `Z60`, `A4_x_Z5` and `A5`: only
the last one is not solvable, and no circuit of constant depth (class TC0) is
known for it. `Z2` is parity.

Elements are permutations in lexicographic order, and their numbers are the
tokens: 0 is the identity. The product `a b` is the permutation that applies
first `a` and then `b`.

The paper trains on all lengths up to k and tests up to k. Here all training
rows have `data.sequence_length` steps, and `data.test_lengths` asks for longer
ones. In a longer split, only the steps beyond `data.sequence_length` count.
"""

import functools
import itertools
import math
import re
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data.synthetic import generated

# Raise it with every change of the examples that a seed gives.
VERSION = 1
MAX_ORDER = 120
_FACTOR = re.compile(r'([ZSA])([1-9]\d{0,3})')
FIELDS = dict(
    group=fields.Field(
        str, default='A5',
        help='The group: Z<n>, S<n>, A<n> or a product such as A4_x_Z5.',
    ),
    sequence_length=fields.Field(
        int, low=1, default=32, help='The length T of a sequence.'
    ),
    **generated.FIELDS,
)


def permutations(group: str) -> list[tuple[int, ...]]:
  """Returns the elements of a group as permutations, in lexicographic order.

  >>> permutations('A3')
  [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
  >>> permutations('Z2_x_Z2')
  [(0, 1, 2, 3), (0, 1, 3, 2), (1, 0, 2, 3), (1, 0, 3, 2)]

  Raises:
    UserValueError: If there is no such group, or it is too large.
  """
  sizes = []
  for factor in group.split('_x_'):
    match = _FACTOR.fullmatch(factor)
    if match is None:
      raise errors.UserValueError(
          'data.group must be Z<n>, S<n> or A<n>, such as Z60, S5 or A5, or a '
          f'product such as A4_x_Z5, got {group!r}.'
      )
    sizes.append((match[1], int(match[2])))
  # A longer factor is too large, and would take long to list.
  fits = all(n <= (MAX_ORDER if kind == 'Z' else 5) for kind, n in sizes)
  groups = [_factor(kind, n) for kind, n in sizes] if fits else []
  if not fits or math.prod(map(len, groups)) > MAX_ORDER:
    raise errors.UserValueError(
        f'data.group must have at most {MAX_ORDER} elements, got {group!r}, '
        'which has more.'
    )
  return sorted(functools.reduce(_product, groups))


def _factor(kind, n):
  """Returns the permutations of a cyclic, symmetric or alternating group."""
  if kind == 'Z':
    return [(*range(k, n), *range(k)) for k in range(n)]
  found = list(itertools.permutations(range(n)))
  return found if kind == 'S' else [p for p in found if _is_even(p)]


def _is_even(permutation):
  pairs = itertools.combinations(permutation, 2)
  return sum(a > b for a, b in pairs) % 2 == 0


def _product(first, second):
  """Returns the direct product: the groups permute points of their own."""
  points = len(first[0])
  return [a + tuple(points + i for i in b) for a in first for b in second]


@functools.cache
def table(group: str) -> np.ndarray:
  """Returns the multiplication table `[N, N]`, int32: `table[a, b]` is `a b`.

  >>> table('Z3').tolist()
  [[0, 1, 2], [1, 2, 0], [2, 0, 1]]

  Raises:
    UserValueError: If there is no such group, or it is too large.
  """
  elements = permutations(group)
  number = {element: i for i, element in enumerate(elements)}
  return np.array([
      [number[tuple(b[i] for i in a)] for b in elements] for a in elements
  ], np.int32)


def running_products(table: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Returns the products of the first 1, 2, ..., T elements.

  Args:
    table: See `table`.
    x: The elements `[T]`.

  Returns:
    `[T]` int32.
  """
  products, shift = np.array(x, np.int32), 1
  # After each round, a product has twice as many factors: no loop over steps.
  while shift < len(products):
    products[shift:] = table[products[:-shift], products[shift:]]
    shift *= 2
  return products


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset` with endless training examples.

  The only baseline is `chance_accuracy`, one over the order of the group: the
  product of uniform elements is uniform.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: Seed, split and number decide an example.

  Raises:
    UserValueError: If there is no such group, or it is too large.
  """
  products, steps = table(config.group), config.sequence_length

  def example(rng, length):
    total = length or steps
    inputs = rng.integers(len(products), size=total, dtype=np.int32)
    seen = steps if total > steps else 0
    return generated.Example(
        inputs, running_products(products, inputs), np.arange(total) >= seen
    )

  return generated.dataset(
      config, shard, seed, example, lambda length: length or steps,
      name='group_word',
      task='language_modelling',
      unit='tokens',
      vocab_size=len(products),
      baselines=lambda: {'chance_accuracy': 1 / len(products)},
      source=dict(generator='group_word', version=VERSION),
  )


DEFINITION = definition.Definition(
    task='language_modelling', fields=FIELDS, load=load
)
