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

import json
import os
from typing import Any
import uuid

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.layers import base

_FORMAT = 1
_RECORD = 'rnnzoo_carry'  # The entry of a file that says what the others are.


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
  base.check_carry(new, jax.eval_shape(
      lambda carry: jax.tree.map(
          lambda u, a: jnp.take(u, rows, a), carry, axis
      ),
      carry,
  ))
  put = lambda u, n, a: u.at[(slice(None),) * a + (rows,)].set(n)
  return jax.tree.map(put, carry, new, axis)


def save_carry(path: str | os.PathLike, carry: base.Carry) -> None:
  """Writes a carry to a file, bit by bit: what a prompt has left behind.

  The file is a plain `.npz` of NumPy, an entry per array and one of JSON. It
  appears whole or not at all, in place of an older one. Of the layer and its
  parameters it holds nothing: name it so that you know.

  Args:
    path: The file, by convention `*.npz`; its directory must exist.
    carry: A pytree of arrays, of a layer or a model.

  Raises:
    ValueError: If `carry` holds something else than arrays of numbers.
    UserError: If the file cannot be written.
  """
  leaves = _named_leaves(carry)
  for name, leaf in leaves.items():
    if not isinstance(getattr(leaf, 'dtype', None), np.dtype):
      raise ValueError(f'`{name}` must be an array of numbers, got {leaf!r}.')
  leaves = jax.block_until_ready(leaves)  # Raises where computing failed.
  arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
  record = dict(
      format=_FORMAT,
      dtypes={name: array.dtype.name for name, array in arrays.items()},
  )
  path = os.fspath(path)
  partial = f'{path}.{uuid.uuid4().hex}.partial'
  try:
    try:
      with open(partial, 'xb') as file:
        np.savez(
            file,
            **{_RECORD: np.array(json.dumps(record))},
            **{name: _plain(array) for name, array in arrays.items()},
        )
        file.flush()
        os.fsync(file.fileno())
      os.replace(partial, path)
    finally:
      if os.path.exists(partial):
        os.remove(partial)
  except OSError as e:
    raise errors.UserError(
        f'Cannot write the carry to {path}: {e.strerror or e}.'
    ) from e


def load_carry(path: str | os.PathLike, like: base.Carry) -> base.Carry:
  """Reads what `save_carry` has written.

  Args:
    path: The file.
    like: A carry of the same tree, shapes and dtypes: `initialize_carry` of the
      layer or model that made it, or `jax.eval_shape` of that.

  Returns:
    The carry, a tree like `like`.

  Raises:
    UserFileNotFoundError: If there is no such file.
    UserValueError: If the file is damaged, is not one of `save_carry`, or holds
      a carry that is not like `like`.
    UserError: If it cannot be read.
  """
  path = os.fspath(path)
  arrays, dtypes = _read(path)
  wanted = _named_leaves(like)
  if set(wanted) != set(arrays):
    raise errors.UserValueError(
        f'{path} holds the carry of something else: it has '
        f'{", ".join(sorted(arrays))}, where {", ".join(sorted(wanted))} '
        'must be.'
    )
  for name, leaf in wanted.items():
    here = f'{leaf.dtype.name} {tuple(leaf.shape)}'
    there = f'{dtypes[name]} {arrays[name].shape}'
    if here != there:
      raise errors.UserValueError(
          f'`{name}` is {there} in {path}, where {here} must be.'
      )
  leaves = [
      jnp.asarray(arrays[name].view(leaf.dtype))
      for name, leaf in wanted.items()
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


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


def _named_leaves(tree) -> dict[str, Any]:
  """Flattens a carry to `{'carry.h': leaf}`."""
  return {
      f'carry{jax.tree_util.keystr(path)}': leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _plain(array: np.ndarray) -> np.ndarray:
  """The bits of an array in a dtype that NumPy's files know."""
  if array.dtype.kind != 'V':  # That of bfloat16 and its like.
    return array
  return array.view(f'u{array.dtype.itemsize}')


def _read(path):
  """Returns the arrays in a file by name, and the names of their dtypes."""
  try:
    with np.load(path, allow_pickle=False) as entries:
      record = json.loads(str(entries[_RECORD]))
      dtypes = record['dtypes']
      arrays = {name: entries[name] for name in dtypes}
  except FileNotFoundError as e:
    raise errors.UserFileNotFoundError(f'There is no file {path}.') from e
  except OSError as e:
    raise errors.UserError(f'Cannot read {path}: {e.strerror or e}.') from e
  except Exception as e:  # An archive can be damaged in a dozen ways.
    raise errors.UserValueError(
        f'{path} is damaged, or no file of save_carry.'
    ) from e
  if record['format'] != _FORMAT:
    raise errors.UserValueError(
        f'{path} is of format {record["format"]}, here {_FORMAT} is read.'
    )
  return arrays, dtypes
