"""Carries in files: what a prompt has left behind."""

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
