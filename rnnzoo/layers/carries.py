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
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.layers import base

_FORMAT = 1
_RECORD = 'rnnzoo_carry'  # The entry of a file that says what the others are.
_LONGEST_RECORD = 2**20  # Characters.


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
  arrays = {
      name: np.asarray(leaf, leaf.dtype.newbyteorder('='))
      for name, leaf in leaves.items()
  }
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
            **{name: u.view(_plain(u.dtype)) for name, u in arrays.items()},
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
  wanted = _named_leaves(like)
  try:
    with zipfile.ZipFile(path) as archive:
      arrays = _read(archive, wanted, path)
  except FileNotFoundError as e:
    raise errors.UserFileNotFoundError(f'There is no file {path}.') from e
  except errors.UserError:
    raise
  except OSError as e:
    raise errors.UserError(f'Cannot read {path}: {e.strerror or e}.') from e
  except Exception as e:  # An archive can be damaged in a dozen ways.
    raise errors.UserValueError(
        f'{path} is damaged, or no file of save_carry.'
    ) from e
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


def _plain(dtype: np.dtype) -> np.dtype:
  """The dtype of NumPy's files that has the bits of `dtype`."""
  if dtype.kind != 'V':  # That of bfloat16 and its like.
    return dtype
  return np.dtype(f'u{dtype.itemsize}')


def _read(archive, wanted, path):
  """Returns the arrays of an archive, all of them checked before they are read.

  Headers may be wrong, and few bytes may unpack to many, so all is checked
  before any array is read.

  Args:
    archive: A `zipfile.ZipFile`.
    wanted: `_named_leaves` of what must be in it.
    path: Where it lies, for messages.

  Raises:
    UserValueError: If the archive holds something else.
    Exception: If it is damaged.
  """
  # Of the others zipfile unpacks as much as there is, whatever is asked for.
  if any(entry.compress_type for entry in archive.infolist()):
    raise errors.UserValueError(
        f'{path} is no file of save_carry: it has compressed entries.'
    )
  dtypes = _read_record(archive, path)
  entries = sorted(f'{name}.npy' for name in (_RECORD, *dtypes))
  if sorted(archive.namelist()) != entries:
    raise ValueError(
        'Entries are missing, or there are more than the record names.'
    )
  if set(wanted) != set(dtypes):
    raise errors.UserValueError(
        f'{path} holds a different carry: it has {_listed(dtypes)}, expected '
        f'{_listed(wanted)}.'
    )
  for name, leaf in wanted.items():
    with archive.open(f'{name}.npy') as file:
      shape, dtype = _header(file)
    plain = _plain(leaf.dtype)
    if (
        dtypes[name] == leaf.dtype.name and dtype.newbyteorder('=') != plain
    ):
      raise errors.UserValueError(
          f'{path} is damaged, or no file of save_carry: `{name}` is stored as '
          f'{dtype.name}, where {plain} holds {leaf.dtype.name}.'
      )
    here = f'{leaf.dtype.name} {tuple(leaf.shape)}'
    there = f'{_shown(dtypes[name])} {shape}'
    if here != there:
      raise errors.UserValueError(
          f'`{name}` is {there} in {path}, where {here} must be.'
      )
  arrays = {}
  for name, leaf in wanted.items():
    with archive.open(f'{name}.npy') as file:
      array = _array(file)
    arrays[name] = array.astype(_plain(leaf.dtype), copy=False)
  return arrays


def _read_record(archive, path):
  """Returns the names of the dtypes by entry, or raises."""
  with archive.open(f'{_RECORD}.npy') as file:
    shape, dtype = _header(file)
  if shape or dtype.kind != 'U' or dtype.itemsize > 4 * _LONGEST_RECORD:
    raise ValueError('The record is no text, or too long a one.')
  with archive.open(f'{_RECORD}.npy') as file:
    record = json.loads(str(_array(file)))
  if record['format'] != _FORMAT:
    raise errors.UserValueError(
        f'{path} is of format {record["format"]!r:.40}, here {_FORMAT} is '
        'read.'
    )
  dtypes = record['dtypes']
  if not isinstance(dtypes, dict) or not all(
      isinstance(name, str) for name in dtypes.values()
  ):
    raise ValueError('The record has no dtypes.')
  return dtypes


def _header(file):
  """Returns the shape and the dtype of an entry, of which no more is read."""
  # In other versions of the format a header has no maximal length.
  if np.lib.format.read_magic(file) != (1, 0):
    raise ValueError('No entry that np.savez would write.')
  shape, _, dtype = np.lib.format.read_array_header_1_0(file)
  return shape, dtype


def _array(file):
  """Returns the array of an entry to its end, where its checksum is checked."""
  array = np.lib.format.read_array(file, allow_pickle=False)
  if file.read(1):
    raise ValueError('There is more than the array.')
  return array


def _listed(names):
  """The first few of them."""
  names = sorted(names)
  rest = f' and {len(names) - 20} more' if len(names) > 20 else ''
  return ', '.join(map(_shown, names[:20])) + rest


def _shown(name):
  """A name from a file as it can be shown, in one line."""
  return ''.join(c if c.isprintable() else '?' for c in name[:80])
