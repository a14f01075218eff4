"""What a person gives as arrays, as inputs and targets of known form.

All functions take and return dictionaries by split, so that the splits get the
same length and the same classes, and raise `UserValueError` for what is wrong.
Lengths are `[N]` int64, or `None` where all steps exist.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo import fields


def array(values: Any, what: str) -> np.ndarray:
  """Returns `values` as an array of numbers or strings, booleans as integers.

  Raises:
    UserValueError: If they are something else, such as objects.
  """
  try:
    found = np.asarray(values)
  except ValueError:  # Lists of unequal lengths.
    found = np.asarray(None)
  if isinstance(values, np.ma.MaskedArray):
    raise errors.UserValueError(
        f'{what} is a masked array, whose mask would be lost; fill it, and '
        'give lengths where steps do not exist.'
    )
  if found.dtype.kind == 'b':
    return found.astype(np.int32)
  if found.dtype.name == 'bfloat16':  # It is none of NumPy's own dtypes.
    return found.astype(np.float32)
  # Strings of a table, such as a column in pandas.
  if found.dtype.kind in 'OT' and found.size and all(
      isinstance(u, str) for u in found.flat
  ):
    return np.array(found.tolist())
  if found.dtype.kind not in 'iufU':
    kind = 'an object' if found.dtype.kind == 'O' else str(found.dtype)
    raise errors.UserValueError(
        f'{what} must be an array of numbers, got {kind}.'
    )
  return found


def padded(values: Any, what: str) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns one array `[N, T, ...]`, and the lengths of a list of arrays."""
  pieces = []
  if isinstance(values, (list, tuple)):
    pieces = [array(value, what) for value in values]
  if len({piece.shape for piece in pieces}) < 2:
    return array(values, what), None
  if (
      not all(piece.ndim and len(piece) for piece in pieces)
      or len({piece.shape[1:] for piece in pieces}) > 1
      or len({piece.dtype.kind.replace('u', 'i') for piece in pieces}) > 1
  ):
    raise errors.UserValueError(
        f'{what} is a list: its arrays must have one dtype, at least one step '
        'each, and the same shape after the first axis.'
    )
  lengths = np.array([len(piece) for piece in pieces])
  dtype = np.result_type(*{piece.dtype for piece in pieces})
  whole = np.zeros((len(pieces), lengths.max(), *pieces[0].shape[1:]), dtype)
  for row, piece in zip(whole, pieces, strict=True):
    row[: len(piece)] = piece
  return whole, lengths


def inputs(
    values: Mapping[str, Any],
    lengths: Mapping[str, Any],
    dt: Mapping[str, Any] | None = None,
) -> tuple[
    dict[str, np.ndarray],
    dict[str, np.ndarray | None],
    dict[str, np.ndarray | None],
]:
  """Returns the inputs of each split, all of one length.

  Args:
    values: The inputs by split.
    lengths: Their lengths, `None` where all steps exist.
    dt: The lengths of the steps, if there are any.

  Returns:
    The inputs: tokens `[N, T]` int32, vectors `[N, T, D]` float32 or small
    integers (see `is_small`), or images `[N, T, H, W, C]` float32 or uint8, 0
    where no step exists. Their lengths. `dt` `[N, T]` float32, 0 where no step
    exists, or `None`.
  """
  found, steps, gaps = {}, {}, {}
  for split, value in values.items():
    what = f'x of {split}'
    found[split], steps[split] = padded(value, what)
    found[split] = _sequences(found[split], what)
    if lengths[split] is not None:
      if steps[split] is not None:
        raise errors.UserValueError(
            f'{what} is a list of arrays of unequal lengths, which needs no '
            'lengths beside it.'
        )
      steps[split] = _lengths(lengths[split], found[split], split)
    gaps[split] = None if dt is None else _step_lengths(
        dt[split], found[split], steps[split], f'dt of {split}'
    )
  if len({(u.shape[2:], is_bytes(u)) for u in found.values()}) > 1:
    forms = ', '.join(f'{u.dtype} {list(u.shape)}' for u in found.values())
    raise errors.UserValueError(
        'All splits of x must be tokens, vectors of one size, or images of one '
        f'size, all uint8 or none, got {forms}.'
    )
  if len({u.dtype for u in found.values()}) > 1:  # Tokens become int32 below.
    found = {
        split: u if u.ndim == 2 else float32(u) for split, u in found.items()
    }
  longest = max(u.shape[1] for u in found.values())
  for split, u in found.items():
    if u.shape[1] < longest:
      if steps[split] is None:
        steps[split] = np.full(len(u), u.shape[1])
      u = _extended(u, longest)
    u = _finite(cleared(u, steps[split]), f'x of {split}')
    if u.ndim == 2:
      errors.check_token_ids(f'x of {split}', u)
      u = u.astype(np.int32)
    found[split] = u
    if gaps[split] is not None:
      gap = cleared(_extended(gaps[split], longest), steps[split])
      gaps[split] = _finite(gap, f'dt of {split}')
      if gap.min() < 0:
        raise errors.UserValueError(
            f'dt of {split} must not be negative, got {gap.min()}.'
        )
  return found, steps, gaps


def _sequences(u, what):
  """Returns integers `[N, T]`, vectors or images as `inputs` does."""
  if u.ndim not in (2, 3, 5) or not u.size or u.dtype.kind == 'U':
    raise errors.UserValueError(
        f'{what} must be vectors [N, T, D], tokens [N, T] or images '
        f'[N, T, H, W, C], got {u.dtype} of shape {list(u.shape)}.'
    )
  if u.ndim == 2 and u.dtype.kind == 'f':
    u = u[..., None]
  as_stored = u.ndim == 2 or u.ndim == 3 and is_small(u) or is_bytes(u)
  return u if as_stored else float32(u)


def _step_lengths(values, u, steps, what):
  """Returns `dt` as floats of the first two axes of the inputs `u`."""
  found, own = padded(values, what)
  if own is not None:
    found = _as_long(found, own, u, steps, what)
  if found.shape != u.shape[:2] or found.dtype.kind == 'U':
    raise errors.UserValueError(
        f'{what} must be numbers [N, T] = {list(u.shape[:2])}, got '
        f'{found.dtype} of shape {list(found.shape)}.'
    )
  return float32(found)


def _lengths(values, u, split):
  found, (count, length) = array(values, 'lengths'), u.shape[:2]
  if found.shape != (count,) or found.dtype.kind not in 'iu':
    raise errors.UserValueError(
        f'lengths of {split} must be {count} integers, one for each row of x, '
        f'got {found.dtype} of shape {list(found.shape)}.'
    )
  if found.min() < 1 or found.max() > length:
    raise errors.UserValueError(
        f'lengths of {split} must be from 1 to {length}, the length of x, got '
        f'{found.min()} to {found.max()}.'
    )
  return found.astype(np.int64)


def targets(
    values: Mapping[str, Any],
    x: Mapping[str, np.ndarray],
    lengths: Mapping[str, np.ndarray | None],
    task: str | None,
    class_names: Sequence[str],
) -> tuple[dict[str, np.ndarray], str, tuple[str, ...]]:
  """Returns the targets of each split, the kind of task, and class names.

  Targets are `[N]` or `[N, T]` int32 for classification, `[N, K]` or
  `[N, T, K]` float32 for regression, and 0 where no step exists.

  Args:
    values: The targets by split.
    x: What `inputs` returned.
    lengths: What `inputs` returned.
    task: `'classification'`, `'regression'`, or `None` to go by the dtype.
    class_names: Names of the classes, perhaps none.
  """
  class_names, found = _names(class_names), {}
  for split, value in values.items():
    what = f'y of {split}'
    found[split], steps = padded(value, what)
    if steps is not None:
      found[split] = _as_long(
          found[split], steps, x[split], lengths[split], what
      )
    if not found[split].ndim or len(found[split]) != len(x[split]):
      raise errors.UserValueError(
          f'{what} must have one row for each of the {len(x[split])} rows of '
          f'x, got the shape {list(found[split].shape)}.'
      )
  train = found['train']
  for u in found.values():
    if u.ndim != train.ndim or (u.dtype.kind in 'iu') != (
        train.dtype.kind in 'iu'
    ):
      raise errors.UserValueError(
          'y must have one kind of dtype and one number of axes in all splits.'
      )
  if train.dtype.kind == 'U' and task != 'regression':
    class_names, found = _numbered(found, class_names)
  elif task is None and train.dtype.kind == 'f':
    task = 'regression'
  task = task or 'classification'
  convert = _labels if task == 'classification' else _numbers
  found = {
      split: convert(u, x[split], lengths[split], f'y of {split}')
      for split, u in found.items()
  }
  if task == 'classification':
    known = np.unique(np.concatenate([u.ravel() for u in found.values()]))
    most = int(known.max())
    if len(known) < 2:
      raise errors.UserValueError(
          f'y has the label {most} only; a classification needs two.'
      )
    if most > max(2**20, 1000 * len(known)) and not class_names:
      raise errors.UserValueError(
          f'y has labels up to {most}, but only {len(known)} different ones. '
          'Number them from 0 upwards, or give strings.'
      )
    if class_names and len(class_names) <= most:
      raise errors.UserValueError(
          f'y has labels up to {most}, but there are only '
          f'{len(class_names)} class_names.'
      )
  elif class_names:
    raise errors.UserValueError('class_names are for classification only.')
  elif len({u.shape[-1] for u in found.values()}) > 1:
    raise errors.UserValueError('y must be as wide in all splits.')
  return found, task, class_names


def is_forecast(
    x: np.ndarray, y: np.ndarray, lengths: np.ndarray | None
) -> bool:
  """Whether some column of `y` is some column of `x`, a few steps later.

  >>> x = np.random.default_rng(0).normal(size=(8, 6, 2))
  >>> later = np.roll(x, -2, axis=1)  # The last two targets are unknown.
  >>> is_forecast(x, later[..., :1], None), is_forecast(x, x, None)
  (True, False)

  Args:
    x: Inputs `[N, T]`, `[N, T, D]` or `[N, T, H, W, C]`.
    y: Targets `[N, T]` or `[N, T, K]`.
    lengths: How many steps of each row exist, `[N]`; `None` if all do.

  Returns:
    Whether that is so for one to `T / 2` steps: more would leave too few to
    compare.
  """
  x, y = (u.reshape(*u.shape[:2], -1) for u in (x, y))
  steps = x.shape[1]
  if lengths is None:
    lengths = np.full(len(x), steps)
  # Few columns agree in the first steps of these rows, which is quick to see.
  few = np.flatnonzero(lengths > steps // 2)[:64]
  later = x[few, 1 : steps // 2 + 1]
  for column in range(y.shape[2]) if len(few) else ():
    same = (later == y[few, :1, column, None]).all(0)
    for shift, other in np.argwhere(same) + [1, 0]:
      known = np.arange(shift, steps) < lengths[:, None]
      differ = x[:, shift:, other] != y[:, : steps - shift, column]
      if not (differ & known).any():
        return True
  return False


def _as_long(u, steps, x, lengths, what):
  """Returns targets of unequal lengths, padded to the length of `x`."""
  expected = np.full(len(x), x.shape[1]) if lengths is None else lengths
  if not np.array_equal(steps, expected):
    raise errors.UserValueError(
        f'{what} is a list: its arrays must be as many and as long as those of '
        'x.'
    )
  return _extended(u, x.shape[1])


def _extended(u, length):
  """Returns `[N, T, ...]` with zeros after its steps, `length` in all."""
  return np.pad(u, [
      (0, length - u.shape[1]) if axis == 1 else (0, 0)
      for axis in range(u.ndim)
  ])


def _names(values):
  """Returns the names of the classes, all different."""
  names = np.asarray(() if values is None else values)
  found = tuple(map(str, names.ravel()))
  if names.ndim != 1 or len(set(found)) < len(found):
    raise errors.UserValueError(
        'class_names must be a list of different names, one for each class, '
        f'got {fields.shown(values)}.'
    )
  return found


def _numbered(found, class_names):
  """Returns the names of the classes, and numbers in place of names."""
  known = np.unique(np.concatenate([u.ravel() for u in found.values()]))
  names = class_names or tuple(map(str, known))
  unknown = set(map(str, known)) - set(names)
  if unknown:
    raise errors.UserValueError(
        f'y has the label {min(unknown)!r}, which is not in class_names.'
    )
  number = {name: i for i, name in enumerate(names)}
  numbers = np.array([number[str(name)] for name in known])
  return names, {
      split: numbers[np.searchsorted(known, u)] for split, u in found.items()
  }


def _labels(u, x, lengths, what):
  """Returns labels `[N]` or `[N, T]` int32."""
  if u.shape == (len(x), 1):  # A column of labels.
    u = u[:, 0]
  if u.ndim > 2 or u.shape != x.shape[: u.ndim]:
    raise errors.UserValueError(
        f'{what} must be labels [N] or [N, T] for classification, with '
        f'[N, T] = {list(x.shape[:2])}, got the shape {list(u.shape)}.'
    )
  u = cleared(u, lengths)
  if not np.array_equal(u, np.trunc(u)):
    raise errors.UserValueError(
        f'{what} must be whole numbers for classification.'
    )
  if u.min() < 0 or u.max() >= 2**31 - 1:
    raise errors.UserValueError(
        f'{what} must be labels from 0 upwards, got {u.min()} to {u.max()}.'
    )
  return u.astype(np.int32)


def _numbers(u, x, lengths, what):
  """Returns numbers `[N, K]` or `[N, T, K]` float32."""
  if u.ndim == 1:
    u = u[:, None]
  fits = u.ndim == 2 or u.ndim == 3 and u.shape[1] == x.shape[1]
  if u.dtype.kind == 'U' or not fits or not u.size:
    raise errors.UserValueError(
        f'{what} must be numbers [N], [N, K] or [N, T, K] for regression, with '
        f'[N, T] = {list(x.shape[:2])}, got {u.dtype} of shape '
        f'{list(u.shape)}.'
    )
  u = float32(u)
  return _finite(cleared(u, lengths) if u.ndim == 3 else u, what)


def is_bytes(u: np.ndarray) -> bool:
  """Whether these are images whose pixels are bytes."""
  return u.ndim == 5 and u.dtype == np.uint8


def is_small(u: np.ndarray) -> bool:
  """Whether these are integers of one or two bytes, less than a float32."""
  return u.dtype.kind in 'iu' and u.dtype.itemsize <= 2


def float32(u: np.ndarray) -> np.ndarray:
  """Returns `u` as float32; what is too large becomes infinite."""
  with np.errstate(over='ignore'):
    return u.astype(np.float32)


def cleared(u: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
  """Returns `[N, T, ...]` with zeros where no step exists; `[N]` as it is."""
  if lengths is None or u.ndim == 1:
    return u
  exists = np.arange(u.shape[1]) < lengths[:, None]
  exists = exists.reshape(exists.shape + (1,) * (u.ndim - 2))
  return np.where(exists, u, np.zeros((), u.dtype))


def _finite(u, what):
  """Returns `u`; an infinite number is an error."""
  if u.dtype.kind == 'f' and not np.isfinite(u).all():
    at = np.argwhere(~np.isfinite(u))[0].tolist()
    raise errors.UserValueError(
        f'{what} must be finite in float32, got {u[tuple(at)]} at index {at}.'
    )
  return u
