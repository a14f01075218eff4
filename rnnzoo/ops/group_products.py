"""Products of groups of rows with one matrix for each group.

`jax.lax.ragged_dot` computes them. On CPU it multiplies every row by every
matrix: with 16 groups it takes 16 times the operations, and as much memory.
There, a loop over tiles of rows takes its place, which reads one matrix at a
time.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import exact

# Rows of a tile. It has about half as many as a group, since the last tile of
# each group is not full.
_LEAST, _MOST = 8, 128


def grouped_product(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
  """Multiplies the rows of each group by the matrix of that group.

  The first `sizes[0]` rows are group 0, the next `sizes[1]` rows group 1, and
  so on. Rows after the last group give 0, whatever they hold. Derivatives of
  any order exist in reverse mode.

  >>> import jax.numpy as jnp
  >>> x, w = jnp.ones((4, 1)), jnp.array([[[2.]], [[3.]]])
  >>> grouped_product(x, w, jnp.array([1, 2]))[:, 0]
  Array([2., 3., 3., 0.], dtype=float32)

  Args:
    x: Rows `[N, D]`.
    w: The matrices `[G, D, F]`, which are cast to the dtype of `x`.
    sizes: The number of rows of each group, integers `[G]`, whose sum is at
      most `N`.

  Returns:
    `[N, F]` in the dtype of `x`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  checking.has_axes('x', x, 'ND')
  checking.are_floating(x=x, w=w)
  checking.has_shape('w', w, 'GDF', (*w.shape[:1], x.shape[1], *w.shape[2:]))
  checking.has_shape('sizes', sizes, 'G', w.shape[:1])
  if not jnp.issubdtype(sizes.dtype, jnp.integer):
    raise ValueError(f'`sizes` must be integers, got {sizes.dtype}.')
  return _product(False, *mesh.same_varying(x, w.astype(x.dtype), sizes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(transposed, x, w, sizes):
  """`grouped_product`, with the transposed matrices if `transposed`."""
  return lax.platform_dependent(
      x, w, sizes, cpu=functools.partial(_product_in_tiles, transposed),
      default=functools.partial(_ragged_product, transposed),
  )


def _product_forward(transposed, x, w, sizes):
  return _product(transposed, x, w, sizes), (x, w, sizes)


def _product_backward(transposed, operands, g):
  x, w, sizes = operands
  pair = (g, x) if transposed else (x, g)
  return _product(not transposed, g, w, sizes), _outer(*pair, sizes), None


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _outer(x, g, sizes):
  """Sums the outer products of rows `[N, D]`, `[N, F]` in each group."""
  return lax.platform_dependent(
      x, g, sizes, cpu=_outer_in_tiles, default=_ragged_outer
  )


def _outer_forward(x, g, sizes):
  return _outer(x, g, sizes), (x, g, sizes)


def _outer_backward(operands, w):
  x, g, sizes = operands
  return _product(True, g, w, sizes), _product(False, x, w, sizes), None


_outer.defvjp(_outer_forward, _outer_backward)


def _ragged_product(transposed, x, w, sizes):
  w = w.swapaxes(1, 2) if transposed else w
  y = lax.ragged_dot(
      x, w, sizes, preferred_element_type=exact.accumulation_dtype(x)
  )
  return _without_rest(y.astype(x.dtype), sizes)


def _ragged_outer(x, g, sizes):
  return lax.ragged_dot_general(
      x, g, sizes,
      lax.RaggedDotDimensionNumbers((([0], [0]), ([], [])), [0], []),
      preferred_element_type=exact.accumulation_dtype(x),
  ).astype(x.dtype)


def _without_rest(y, sizes):
  """Sets the rows after the last group to 0, which kernels may not write."""
  return jnp.where((jnp.arange(y.shape[0]) < sizes.sum())[:, None], y, 0)


def _tiles(rows, sizes):
  """Cuts groups in tiles, the last of each group perhaps too long.

  Returns:
    The number of rows of a tile, the group, the first row and the end of the
    group of each tile in order, and the number of tiles.
  """
  groups = sizes.shape[0]
  tile = min(max(rows // (2 * groups), _LEAST), _MOST)
  counts, ends = -(-sizes // tile), jnp.cumsum(sizes)
  last = jnp.cumsum(counts)
  index = jnp.arange(rows // tile + groups)
  # `jnp.searchsorted` of JAX 0.10.2 fails inside of `jax.shard_map`.
  group = (last <= index[:, None]).sum(1)
  group = jnp.minimum(group, groups - 1)
  first = (ends - sizes)[group] + (index - (last - counts)[group]) * tile
  return tile, group, first, ends[group], last[-1]


def _product_in_tiles(transposed, x, w, sizes):
  rows, features = x.shape[0], w.shape[1 if transposed else 2]
  tile, group, first, _, count = _tiles(rows, sizes)
  x = jnp.pad(x, ((0, tile), (0, 0)))
  axes = ((1,), (1 if transposed else 0,)), ((), ())

  def body(i, y):
    part = lax.dynamic_slice_in_dim(x, first[i], tile)
    part = lax.dot_general(part, w[group[i]], axes)
    # The end of a tile that reaches into the next group is written again.
    return lax.dynamic_update_slice_in_dim(y, part, first[i], 0)

  empty = jnp.zeros((rows + tile, features), x.dtype)
  y, *_ = mesh.same_varying(empty, x, w, sizes)
  return _without_rest(lax.fori_loop(0, count, body, y)[:rows], sizes)


def _outer_in_tiles(x, g, sizes):
  tile, group, first, end, count = _tiles(x.shape[0], sizes)
  padded = [jnp.pad(u, ((0, tile), (0, 0))) for u in (x, g)]
  dtype = exact.accumulation_dtype(x)

  def body(i, w):
    keep = (first[i] + jnp.arange(tile) < end[i])[:, None]
    u, v = (
        jnp.where(keep, lax.dynamic_slice_in_dim(part, first[i], tile), 0)
        for part in padded
    )
    old = lax.dynamic_index_in_dim(w, group[i], keepdims=False)
    new = old + lax.dot_general(
        u, v, (((0,), (0,)), ((), ())), preferred_element_type=dtype
    )
    return lax.dynamic_update_index_in_dim(w, new, group[i], 0)

  empty = jnp.zeros((sizes.shape[0], x.shape[1], g.shape[1]), dtype)
  w, *_ = mesh.same_varying(empty, x, g, sizes)
  return lax.fori_loop(0, count, body, w).astype(x.dtype)
