"""Rows of carries, for servers: requests come and go (continuous batching).

A request is a row of the batch, and its row of the carry is its whole state. So
requests of any age share a batch, and a new request takes the row of a finished
one:

>>> from flax import nnx
>>> import jax.numpy as jnp
>>> from rnnzoo.layers import lstm
>>> layer = lstm.LSTM(4, 8, rngs=nnx.Rngs(0))
>>> axes = batch_axes(layer)                     # For a model, too.
>>> carry = layer.initialize_carry(3)            # Three requests,
>>> carry, y = layer.step(carry, jnp.ones((3, 4)))       # one token each.
>>> prompt, _ = layer(jnp.ones((1, 7, 4)))       # A fourth, of seven tokens,
>>> carry = put_rows(carry, [1], prompt, axis=axes)      # replaces the second.
>>> carry, y = layer.step(carry, jnp.ones((3, 4)))
>>> carry = take_rows(carry, [1, 2], axis=axes)  # The first one ends.
>>> carry.h.shape
(2, 8)
"""

from typing import Any

import jax
from jax import core
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import base
from rnnzoo.layers import checking


def batch_axes(module) -> Any:
  """Finds the batch axis of every array of a carry.

  It is 0 in the carry of a layer. In the carry of a model it is 1 where blocks
  are stacked over depth, and 0 elsewhere.

  >>> from flax import nnx
  >>> from rnnzoo.layers import lstm
  >>> batch_axes(lstm.LSTM(4, 8, rngs=nnx.Rngs(0)))
  LSTMCarry(c=0, h=0)

  Args:
    module: A layer or a model; nothing is computed.

  Returns:
    A tree of integers like the carry, for `axis` of `take_rows` and `put_rows`,
    or `in_axes` of `jax.vmap`.

  Raises:
    ValueError: If an array of the carry has no batch axis.
  """
  shapes = [
      jax.eval_shape(lambda batch=batch: module.initialize_carry(batch))
      for batch in (2, 3)
  ]

  def one(path, two, three):
    axes = [i for i, n in enumerate(two.shape) if n != three.shape[i]]
    if len(axes) != 1:
      raise ValueError(
          f'`carry{jax.tree_util.keystr(path)}` has no batch axis: it is '
          f'{two.shape} for two sequences, {three.shape} for three.'
      )
    return axes[0]

  return jax.tree_util.tree_map_with_path(one, *shapes)


def take_rows(carry: base.Carry, rows: jax.Array, *, axis: Any) -> base.Carry:
  """Returns rows of a carry, for example the beams that remain.

  >>> take_rows(jnp.arange(4), [3, 0, 0], axis=0)
  Array([3, 0, 0], dtype=int32)

  Args:
    carry: A pytree of arrays.
    rows: Integers `[K]` within the batch, which may repeat. They are checked
      unless they are traced.
    axis: The batch axis: 0 for the carry of a layer, `batch_axes(model)` for
      that of a model. An integer, or a tree of integers like the carry or its
      upper part.

  Returns:
    A carry of `K` rows.

  Raises:
    ValueError: If `rows` are not rows of the batch, or `axis` is not the batch
      axis.
  """
  axis, _ = _checked(carry, rows, axis)
  rows = jnp.asarray(rows)
  return jax.tree.map(lambda u, a: jnp.take(u, rows, a), carry, axis)


def put_rows(
    carry: base.Carry, rows: jax.Array, new: base.Carry, *, axis: Any
) -> base.Carry:
  """Replaces rows of a carry, for example those of finished requests.

  >>> put_rows(jnp.zeros(4), [2], jnp.ones(1), axis=0)
  Array([0., 0., 1., 0.], dtype=float32)

  Args:
    carry: A pytree of arrays.
    rows: Integers `[K]` within the batch, all different. They are checked
      unless they are traced.
    new: A carry of `K` rows.
    axis: The batch axis, see `take_rows`.

  Returns:
    `carry` with `new` in its `rows`.

  Raises:
    ValueError: If `rows` are not rows of the batch or not all different, `axis`
      is not the batch axis, or `new` does not fit.
  """
  axis, concrete = _checked(carry, rows, axis)
  if concrete is not None and len(np.unique(concrete)) < len(concrete):
    raise ValueError(
        f'`rows` must all be different, got {concrete.tolist()}.'
    )
  rows = jnp.asarray(rows)
  checking.check_carry(new, jax.eval_shape(
      lambda carry: jax.tree.map(
          lambda u, a: jnp.take(u, rows, a), carry, axis
      ),
      carry,
  ))
  put = lambda u, n, a: u.at[(slice(None),) * a + (rows,)].set(n)
  return jax.tree.map(put, carry, new, axis)


def _checked(carry, rows, axis):
  """Returns `axis` as a tree like `carry`, and `rows` unless traced."""
  rows = rows if isinstance(rows, core.Tracer) else np.asarray(rows)
  if rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
    raise ValueError(
        f'`rows` must be integers [K], got {rows.dtype} {rows.shape}.'
    )
  axis = jax.tree.map(
      lambda a, part: jax.tree.map(lambda _: a, part), axis, carry
  )
  sizes = {}
  for (path, u), a in zip(
      jax.tree_util.tree_leaves_with_path(carry), jax.tree.leaves(axis)
  ):
    name = f'carry{jax.tree_util.keystr(path)}'
    if not 0 <= a < u.ndim:
      raise ValueError(f'`axis` must be one of `{name}` {u.shape}, got {a}.')
    sizes[name] = u.shape[a]
  if len(set(sizes.values())) > 1:
    found = ', '.join(f'{size} of {name}' for name, size in sizes.items())
    raise ValueError(
        f'`axis` must be the batch axis, of one size in all of the carry, got '
        f'{found}; layers.batch_axes finds it.'
    )
  if isinstance(rows, core.Tracer):
    return axis, None
  batch = next(iter(sizes.values()), 0)
  if ((rows < 0) | (rows >= batch)).any():
    raise ValueError(
        f'`rows` must be within a batch of {batch}, got {rows.tolist()}.'
    )
  return axis, rows
