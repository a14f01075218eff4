"""Compares trees of numbers, and describes the differences."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Largest difference, relative to the largest magnitude of the reference.
TOLERANCES = dict(bfloat16=3e-2, float16=4e-3, float32=2e-5, float64=1e-10)


def assert_close(got: Any, want: Any, dtype=None, *, tolerance=None) -> None:
  """Raises `AssertionError` unless two trees hold the same numbers.

  The error of a leaf is its largest difference, relative to the largest
  magnitude of that leaf in `want`, or to a thousandth of the largest magnitude
  of the whole tree if that is more. A NaN equals a NaN.

  >>> import jax.numpy as jnp
  >>> assert_close((jnp.ones(3), 1.0), (jnp.ones(3), 1.0))

  Args:
    got: A pytree of arrays.
    want: The reference, of the same structure and shapes.
    dtype: Row of `TOLERANCES` to use; if `None`, that of the less precise of
      the two leaves.
    tolerance: Instead of the table's.

  Raises:
    AssertionError: With the name, error and tolerance of each leaf that
      differs.
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
  """Returns the leaves of two trees that differ too much.

  Args:
    name: Prefix of the names of leaves.
    got: A tree.
    want: The reference.
    via: A dtype in which the numbers were computed.
    dtype: Row of the table to use, whatever the dtypes of the leaves.
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
  """Returns the largest difference; infinity if only one side is NaN."""
  got, want = numbers(got), numbers(want)
  same = (got == want) | (np.isnan(got) & np.isnan(want))
  gap = np.abs(np.where(same, 0, got) - np.where(same, 0, want))
  return np.where(np.isnan(gap), np.inf, gap).max(initial=0)


def _size(u):
  """Returns the largest finite magnitude."""
  u = np.abs(numbers(u))
  return u[np.isfinite(u)].max(initial=0)


def _tolerance(dtype):
  """Returns the row of the table; a complex number has that of its parts."""
  if not jnp.issubdtype(dtype, jnp.inexact):
    return 0.0
  return TOLERANCES[jnp.finfo(dtype).dtype.name]


def numbers(u):
  """Converts to float64 or complex128."""
  u = np.asarray(u)
  wide = np.complex128 if np.iscomplexobj(u) else np.float64
  return u.astype(wide)


def path_of(path):
  return jax.tree_util.keystr(path)


def leaves_of(tree):
  return jax.tree_util.tree_flatten_with_path(tree)[0]


def is_floating(u):
  return jnp.issubdtype(u.dtype, jnp.inexact)
