"""Comparing trees of numbers, and what to say of those that differ."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Largest difference, relative to the largest magnitude of the reference.
TOLERANCES = dict(bfloat16=3e-2, float16=4e-3, float32=2e-5, float64=1e-10)


def assert_close(got: Any, want: Any, dtype=None, *, tolerance=None) -> None:
  """Raises unless two trees hold the same numbers.

  The error of a leaf is its largest difference, relative to the largest
  magnitude in that leaf of `want`, or to a thousandth of that of the whole tree
  where the leaf is smaller. A NaN equals a NaN.

  >>> import jax.numpy as jnp
  >>> assert_close((jnp.ones(3), 1.0), (jnp.ones(3), 1.0))

  Args:
    got: A pytree of arrays.
    want: The reference, of the same structure and shapes.
    dtype: Whose row of `TOLERANCES` holds; the coarser of the two leaves' if
      `None`.
    tolerance: Instead of the table's.

  Raises:
    AssertionError: Naming each leaf that differs, its error and tolerance.
  """
  problems = differences('', got, want, dtype=dtype, tolerance=tolerance)
  if problems:
    raise AssertionError('\n'.join(
        f'{p.what}: error {p.error:.2g}, tolerance {p.tolerance:.2g}'
        for p in problems
    ))


class Problem(NamedTuple):
  """One comparison that failed."""

  what: str
  error: float
  tolerance: float


def wrong(what):
  return Problem(what, np.inf, 0.0)


def zero(what, u):
  error = np.abs(numbers(u)).max(initial=0)
  return [] if error == 0 else [Problem(what, float(error), 0.0)]


def differences(name, got, want, via=None, *, dtype=None, tolerance=None):
  """The leaves of two trees that differ by more than they may.

  Args:
    name: What to call them.
    got: A tree.
    want: The reference.
    via: A dtype that the numbers went through, coarser perhaps than their own.
    dtype: Whose row of the table holds, whatever the leaves are.
    tolerance: Instead of the table's.

  Returns:
    The problems.
  """
  structure = jax.tree.structure(want)
  if jax.tree.structure(got) != structure:
    return [wrong(f'{name}: {jax.tree.structure(got)}, want {structure}')]
  problems = []
  largest = max(map(_size, jax.tree.leaves(want)), default=0)
  for (path, w), g in zip(leaves_of(want), jax.tree.leaves(got)):
    what, g, w = name + path_of(path), np.asarray(g), np.asarray(w)
    if g.shape != w.shape:
      problems.append(wrong(f'{what}: {g.shape}, want {w.shape}'))
      continue
    limit = tolerance
    if limit is None:
      rows = [g.dtype, w.dtype, via or w.dtype] if dtype is None else [dtype]
      limit = max(map(_tolerance, rows)) if is_floating(w) else 0.0
    scale = max(_size(w), 1e-3 * largest, np.finfo(np.float32).tiny)
    error = _gap(g, w) / scale
    if error > limit:
      problems.append(Problem(what, float(error), limit))
  return problems


def _gap(got, want):
  """The largest difference; a NaN is as far as can be from any other number."""
  got, want = numbers(got), numbers(want)
  same = (got == want) | (np.isnan(got) & np.isnan(want))
  gap = np.abs(np.where(same, 0, got) - np.where(same, 0, want))
  return np.where(np.isnan(gap), np.inf, gap).max(initial=0)


def _size(u):
  """The largest finite magnitude."""
  u = np.abs(numbers(u))
  return u[np.isfinite(u)].max(initial=0)


def _tolerance(dtype):
  """The row of the table; complex numbers have that of their parts."""
  if not jnp.issubdtype(dtype, jnp.inexact):
    return 0.0
  return TOLERANCES[jnp.finfo(dtype).dtype.name]


def numbers(u):
  """`u` in NumPy's widest dtype."""
  u = np.asarray(u)
  wide = np.complex128 if np.iscomplexobj(u) else np.float64
  return u.astype(wide)


def path_of(path):
  return jax.tree_util.keystr(path)


def leaves_of(tree):
  return jax.tree_util.tree_flatten_with_path(tree)[0]


def is_floating(u):
  return jnp.issubdtype(u.dtype, jnp.inexact)
