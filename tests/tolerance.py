"""How close is close: one table, by dtype, relative to the reference's size."""

import jax
import jax.numpy as jnp
import numpy as np

# Of the largest magnitude in the reference. Loosening one is to be reviewed.
TOLERANCE = dict(
    float64=1e-12,
    complex128=1e-12,
    float32=2e-6,
    complex64=2e-6,
    float16=2e-3,
    bfloat16=1e-2,
)


def assert_close(got, want, dtype=None):
  """Asserts that two trees of arrays agree as far as `dtype` allows.

  Args:
    got: A tree of arrays.
    want: A tree of the same structure; its leaves may have a wider dtype.
    dtype: Sets the tolerance; by default each leaf of `got` its own.
  """
  jax.tree.map_with_path(
      lambda path, *leaves: _assert_leaf_close(
          jax.tree_util.keystr(path) or 'array', *leaves, dtype
      ),
      got,
      want,
  )


def _assert_leaf_close(name, got, want, dtype):
  tolerance = TOLERANCE.get(jnp.dtype(dtype or got.dtype).name, 0)
  wide = np.complex128 if np.iscomplexobj(want) else np.float64
  assert np.iscomplexobj(got) == np.iscomplexobj(want), f'{name}: {got.dtype}'
  got, want = np.asarray(got, wide), np.asarray(want, wide)
  assert got.shape == want.shape, f'{name}: {got.shape} is not {want.shape}'
  finite = np.isfinite(want)
  np.testing.assert_array_equal(
      got[~finite], want[~finite], f'{name}: not finite in the reference'
  )
  size = np.abs(want[finite]).max(initial=0) or 1
  error = np.abs(got[finite] - want[finite]).max(initial=0) / size
  # Written so that a NaN fails.
  assert error <= tolerance, (
      f'{name}: off by {error:.2e} of its size {size:.2e}, not {tolerance:.0e}'
  )
