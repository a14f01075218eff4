"""Carries in files, for example the state after a prompt.

>>> from flax import nnx
>>> import jax.numpy as jnp
>>> from rnnzoo.layers import lstm
>>> import tempfile
>>> layer = lstm.LSTM(4, 8, rngs=nnx.Rngs(0))
>>> prompt, _ = layer(jnp.ones((1, 7, 4)))
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
_RECORD = 'rnnzoo_carry'  # The entry with the dtypes of the other entries.
_LONGEST_RECORD = 2**20  # Characters.


def save_carry(path: str | os.PathLike, carry: base.Carry) -> None:
  """Writes a carry to a file, bit by bit.

  The file is a plain `.npz` of NumPy, with an entry for each array and one of
  JSON. It is written completely or not at all, and replaces an older file. It
  does not record the layer and its parameters; put that into its name.

  Args:
    path: The file, by convention `*.npz`; its directory must exist.
    carry: A pytree of arrays, of a layer or a model.

  Raises:
    ValueError: If `carry` holds anything but arrays of numbers.
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
  members: dict[str, Any] = {_RECORD: np.array(json.dumps(record))}
  for name, u in arrays.items():
    members[name] = u.view(_plain(u.dtype))
  path = os.fspath(path)
  partial = f'{path}.{uuid.uuid4().hex}.partial'
  try:
    try:
      with open(partial, 'xb') as file:
        np.savez(file, **members)
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
  """Reads a file of `save_carry`.

  Args:
    path: The file.
    like: A carry with the same structure, shapes and dtypes: `initialize_carry`
      of the layer or model, or `jax.eval_shape` of that.

  Returns:
    The carry, a tree like `like`.

  Raises:
    UserFileNotFoundError: If the file does not exist.
    UserValueError: If the file is damaged, is not one of `save_carry`, or holds
      a carry that differs from `like`.
    UserError: If it cannot be read.
  """
  path = os.fspath(path)
  wanted = _named_leaves(like)
  try:
    with zipfile.ZipFile(path) as archive:
      arrays = _read(archive, wanted, path)
  except FileNotFoundError as e:
    raise errors.UserFileNotFoundError(
        f'The file {path} does not exist.'
    ) from e
  except errors.UserError:
    raise
  except OSError as e:
    raise errors.UserError(f'Cannot read {path}: {e.strerror or e}.') from e
  except Exception as e:  # An archive can be damaged in a dozen ways.
    raise errors.UserValueError(
        f'{path} is damaged, or is not a file of save_carry.'
    ) from e
  leaves = [
      jnp.asarray(arrays[name].view(leaf.dtype))
      for name, leaf in wanted.items()
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(tree) -> dict[str, Any]:
  """Flattens a carry to `{'carry.h': leaf}`."""
  return {
      f'carry{jax.tree_util.keystr(path)}': leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _plain(dtype: np.dtype) -> np.dtype:
  """Returns a dtype that NumPy can store, with the same bits as `dtype`."""
  if dtype.kind != 'V':  # That of bfloat16 and its like.
    return dtype
  return np.dtype(f'u{dtype.itemsize}')


def _read(archive, wanted, path):
  """Returns the arrays of an archive.

  Headers may be wrong, and few bytes may unpack to many. So all headers are
  checked before any array is read.

  Args:
    archive: A `zipfile.ZipFile`.
    wanted: `_named_leaves` of the expected carry.
    path: Path of the archive, for messages.

  Raises:
    UserValueError: If the archive holds another carry.
    Exception: If the archive is damaged.
  """
  # From a compressed entry, zipfile unpacks all data at once, however little is
  # asked for.
  if any(entry.compress_type for entry in archive.infolist()):
    raise errors.UserValueError(
        f'{path} is not a file of save_carry: it has compressed entries.'
    )
  dtypes = _read_record(archive, path)
  entries = sorted(f'{name}.npy' for name in (_RECORD, *dtypes))
  if sorted(archive.namelist()) != entries:
    raise ValueError(
        'The entries are not those that the record names.'
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
          f'{path} is damaged, or is not a file of save_carry: `{name}` is '
          f'stored as {dtype.name}, but {leaf.dtype.name} needs {plain}.'
      )
    here = f'{leaf.dtype.name} {tuple(leaf.shape)}'
    there = f'{_shown(dtypes[name])} {shape}'
    if here != there:
      raise errors.UserValueError(
          f'`{name}` must be {here}, got {there} in {path}.'
      )
  arrays = {}
  for name, leaf in wanted.items():
    with archive.open(f'{name}.npy') as file:
      array = _array(file)
    arrays[name] = array.astype(_plain(leaf.dtype), copy=False)
  return arrays


def _read_record(archive, path):
  """Returns the names of the dtypes by entry."""
  with archive.open(f'{_RECORD}.npy') as file:
    shape, dtype = _header(file)
  if shape or dtype.kind != 'U' or dtype.itemsize > 4 * _LONGEST_RECORD:
    raise ValueError('The record is not text, or is too long.')
  with archive.open(f'{_RECORD}.npy') as file:
    record = json.loads(str(_array(file)))
  if record['format'] != _FORMAT:
    raise errors.UserValueError(
        f'{path} has the format {record["format"]!r:.40}, expected {_FORMAT}.'
    )
  dtypes = record['dtypes']
  if not isinstance(dtypes, dict) or not all(
      isinstance(name, str) for name in dtypes.values()
  ):
    raise ValueError('The record has no dtypes.')
  return dtypes


def _header(file):
  """Returns the shape and the dtype of an entry without reading its data."""
  # In other versions of the format a header has no maximal length.
  if np.lib.format.read_magic(file) != (1, 0):
    raise ValueError('The entry was not written by np.savez.')
  shape, _, dtype = np.lib.format.read_array_header_1_0(file)
  return shape, dtype


def _array(file):
  """Reads an array to the end of its entry, so that its checksum is checked."""
  array = np.lib.format.read_array(file, allow_pickle=False)
  if file.read(1):
    raise ValueError('The entry is longer than its array.')
  return array


def _listed(names):
  """Joins the first few names."""
  names = sorted(names)
  rest = f' and {len(names) - 20} more' if len(names) > 20 else ''
  return ', '.join(map(_shown, names[:20])) + rest


def _shown(name):
  """Makes a name from a file safe to print in one line."""
  return ''.join(c if c.isprintable() else '?' for c in name[:80])
