"""How long the expressions of ListOps are and which values they have, exactly.

The rules of `rnnzoo.data.builders.listops_trees` decide the probability of each
length and value. It is computed from the deepest nodes upwards, with generating
functions: the length of an operator is 2 more than the sum of the lengths of
its arguments, so its distribution is a convolution, and a product after a
Fourier transform.
"""

import math
from typing import NamedTuple

import numpy as np
from rnnzoo.data.builders import listops_trees


class Facts(NamedTuple):
  """What holds for the expressions that the rules keep.

  Attributes:
    kept: The share of all trees that are kept.
    mean: The mean of the lengths.
    deviation: Their standard deviation.
    median: The smallest length that at least half do not exceed.
    median_density: The share of expressions that have this length.
    labels: The share of each value, float64 `[10]`.
  """

  kept: float
  mean: float
  deviation: float
  median: int
  median_density: float
  labels: np.ndarray


def facts(rules: listops_trees.Rules) -> Facts:
  """Returns the exact facts of the rules.

  >>> round(facts(listops_trees.Rules(max_depth=2, above=2)).kept, 12)
  0.25
  """
  shares = distribution(rules)
  shares[:, : rules.above + 1] = 0
  kept, of_length = shares.sum(), shares.sum(0) / shares.sum()
  numbers = np.arange(rules.below)
  mean = of_length @ numbers
  median = int(np.searchsorted(np.cumsum(of_length), 0.5))
  return Facts(
      float(kept), float(mean),
      math.sqrt(of_length @ (numbers - mean) ** 2),
      median, float(of_length[median]), shares.sum(1) / kept,
  )


def lengths(rules: listops_trees.Rules) -> np.ndarray:
  """Returns the probability of each length alone, float64 `[below]`.

  It takes a tenth of the time of `distribution`.
  """
  below = rules.below
  node = np.zeros(below)
  node[1] = 1
  for _ in range(rules.max_depth - 1):
    operators = np.zeros(below)
    size = rules.max_args * below  # No sum of lengths wraps around.
    transformed = np.fft.rfft(node, size)
    sums = sum(
        transformed**k for k in range(2, rules.max_args + 1)
    ) / (rules.max_args - 1)
    operators[2:] = np.fft.irfft(sums, size)[: below - 2]
    node = rules.operator_share * operators
    node[1] += 1 - rules.operator_share
  return node


def distribution(rules: listops_trees.Rules) -> np.ndarray:
  """Returns the probability of each value and length, float64 `[10, below]`.

  Those of trees of `rules.below` and more tokens are left out.
  """
  digits, below = listops_trees.DIGITS, rules.below
  node = np.zeros((digits, below))
  node[:, 1] = 1 / digits  # The deepest nodes are digits.
  for _ in range(rules.max_depth - 1):
    operators = np.zeros((digits, below))
    size = rules.max_args * below  # No sum of lengths wraps around.
    transformed = np.fft.rfft(node, size)
    values = sum(
        _values(transformed, k) for k in range(2, rules.max_args + 1)
    ) / (rules.max_args - 1)
    operators[:, 2:] = np.fft.irfft(values, size)[:, : below - 2]
    node = rules.operator_share * operators
    node[:, 1] += (1 - rules.operator_share) / digits
  return node


def _values(u, k):
  """Returns the transform of each value of an operator of `k` arguments.

  Args:
    u: For each value `v` the transform of the lengths of arguments with that
      value, complex `[10, S]`.
    k: The number of arguments.
  """
  at_most = np.cumsum(u, 0)
  at_least = np.cumsum(u[::-1], 0)[::-1]
  above = _next(at_least)
  largest = _steps(at_most**k)
  smallest = at_least**k - above**k
  total = np.fft.ifft(np.fft.fft(u, axis=0) ** k, axis=0)
  # At least j arguments have at most the value v: so has the j-th smallest.
  half = (k + 1) // 2
  middle = _steps(sum(
      math.comb(k, j) * at_most**j * above ** (k - j)
      for j in range(half, k + 1)
  ))
  if k % 2 == 0:
    middle = _means(middle, _steps(at_most**half), at_least, above, half)
  return (largest + smallest + total + middle) / listops_trees.OPERATORS


def _means(lower, low_half, at_least, above, half):
  """Returns the transform of the rounded mean of the two middle values.

  Args:
    lower: The transform of the smaller one of the two.
    low_half: Of `half` arguments, the largest of which has the value v.
    at_least: Of an argument of at least the value v.
    above: Of an argument above v.
    half: Half of the number of arguments.
  """
  high_half = math.comb(2 * half, half) * (at_least**half - above**half)
  found, both = np.zeros_like(lower), lower.copy()
  for a in range(len(lower)):
    for b in range(a + 1, len(lower)):
      pair = low_half[a] * high_half[b]
      found[(a + b) // 2] += pair
      both[a] -= pair
    found[a] += both[a]
  return found


def _next(u):
  """Returns `u` of the next larger value; 0 above the largest."""
  return np.concatenate([u[1:], np.zeros_like(u[:1])])


def _steps(u):
  """Returns the differences of `u` between a value and the one below."""
  return np.diff(u, axis=0, prepend=0)
