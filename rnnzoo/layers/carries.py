"""What a server does with carries: rows come and go, prompts lie on disk.

A request is a row of the batch, and all that is known of it is in that row of
the carry. So requests of any age share a batch, and the next one takes the row
of one that has ended (continuous batching):

>>> from flax import nnx
>>> import jax.numpy as jnp
>>> from rnnzoo.layers import lstm
>>> layer = lstm.LSTM(4, 8, rngs=nnx.Rngs(0))
>>> axes = batch_axes(layer)                     # Or of a model: once.
>>> carry = layer.initialize_carry(3)            # Three requests,
>>> carry, y = layer.step(carry, jnp.ones((3, 4)))       # a token each.
>>> prompt, _ = layer(jnp.ones((1, 7, 4)))       # A fourth, seven tokens long,
>>> carry = put_rows(carry, [1], prompt, axis=axes)      # follows the second;
>>> carry, y = layer.step(carry, jnp.ones((3, 4)))
>>> carry = take_rows(carry, [1, 2], axis=axes)  # the first one ends.
>>> carry.h.shape
(2, 8)

What a prompt has left behind is read from disk in place of the prompt:

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as directory:
...   save_carry(f'{directory}/prompt.npz', prompt)
...   prompt = load_carry(
...       f'{directory}/prompt.npz', like=layer.initialize_carry(1)
...   )
>>> prompt.h.shape
(1, 8)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import base
from rnnzoo.layers import checking


def batch_axes(module) -> Any:
  """Finds the batch axis of every array of a carry.

  It is 0 in the carries of layers; where blocks are stacked over depth, as in
  those of models, it is 1 but for what has no depth.

  >>> from flax import nnx
  >>> from rnnzoo.layers import lstm
  >>> batch_axes(lstm.LSTM(4, 8, rngs=nnx.Rngs(0)))
  LSTMCarry(c=0, h=0)

  Args:
    module: A layer or a model; nothing is computed.

  Returns:
    A tree like the carry, of integers: `axis` of `take_rows` and `put_rows`, or
    `in_axes` of `jax.vmap`.

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
  """Returns rows of a carry, say the beams that live on.

  >>> take_rows(jnp.arange(4), [3, 0, 0], axis=0)
  Array([3, 0, 0], dtype=int32)

  Args:
    carry: A pytree of arrays.
    rows: Integers `[K]`, which may repeat; each within the batch, which is
      checked unless they are traced.
    axis: The batch axis: 0 of a layer's carry, `batch_axes(model)` of a
      model's. An integer, or a tree of them like the carry or its upper part.

  Returns:
    A carry of `K` rows.

  Raises:
    ValueError: If `rows` are no rows of the batch, or `axis` is not its axis.
  """
  axis, _ = _checked(carry, rows, axis)
  rows = jnp.asarray(rows)
  return jax.tree.map(lambda u, a: jnp.take(u, rows, a), carry, axis)


def put_rows(
    carry: base.Carry, rows: jax.Array, new: base.Carry, *, axis: Any
) -> base.Carry:
  """Replaces rows of a carry, say those of a server's requests that are done.

  >>> put_rows(jnp.zeros(4), [2], jnp.ones(1), axis=0)
  Array([0., 0., 1., 0.], dtype=float32)

  Args:
    carry: A pytree of arrays.
    rows: Integers `[K]`, all different, each within the batch; checked unless
      they are traced.
    new: A carry of `K` rows.
    axis: The batch axis, see `take_rows`.

  Returns:
    `carry` with `new` in its `rows`.

  Raises:
    ValueError: If `rows` are no rows of the batch or not all different, `axis`
      is not its axis, or `new` does not fit.
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
  rows = rows if isinstance(rows, jax.core.Tracer) else np.asarray(rows)
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
  if isinstance(rows, jax.core.Tracer):
    return axis, None
  batch = next(iter(sizes.values()), 0)
  if ((rows < 0) | (rows >= batch)).any():
    raise ValueError(
        f'`rows` must be within a batch of {batch}, got {rows.tolist()}.'
    )
  return axis, rows
