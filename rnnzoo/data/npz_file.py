"""Your own arrays in a file that `numpy.savez` wrote.

  numpy.savez('my.npz', x=x, y=y)

The file holds `x`, `y` and perhaps `lengths` and `dt`, or ready splits
`x_train`, `y_train`, `lengths_train`, `dt_train`, `x_validation`, ...,
`x_test`, ...; `class_names` is an optional array of strings.
`arrays.from_arrays` says what the arrays may be. Pickled objects are never
loaded.
"""

import pathlib
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import arrays
from rnnzoo.data import definition
from rnnzoo.data import examples
from rnnzoo.data import pipeline
from rnnzoo.data import settings

NAME = 'npz_file'


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the arrays and `class_names` for `from_arrays`.

  Raises:
    UserError: If the file is damaged or lacks an array.
  """
  found = read_arrays(path)
  split_names = [f'x_{split}' for split in arrays.SPLITS]
  if ('x' in found) == any(name in found for name in split_names):
    raise errors.UserValueError(
        f'{path} (data.path) must hold either x and y or x_train, y_train and '
        f'so on; it has {", ".join(found) or "no arrays"}.'
    )
  wanted: dict[str, Any] = dict(class_names=found.get('class_names', ()))
  given = ('x', 'y')
  for name in ('lengths', 'dt'):
    if name in found or any(f'{name}_{s}' in found for s in arrays.SPLITS):
      given += (name,)
  splits = [s for s in arrays.SPLITS if f'x_{s}' in found]
  for name in given:
    keys = [f'{name}_{split}' for split in splits] or [name]
    missing = [key for key in keys if key not in found]
    if missing:
      raise errors.UserValueError(
          f'{path} (data.path) has no array {missing[0]}, only '
          f'{", ".join(found)}.' + errors.suggest(missing[0], found)
      )
    wanted[name] = (
        {split: found[f'{name}_{split}'] for split in splits} or found[name]
    )
  _check_rest(path, found, splits)
  return wanted


def _check_rest(path, found, splits):
  """Raises `UserValueError` if an array seems to be meant, but is not read."""
  known = [
      f'{name}_{split}' for name in ('x', 'y', 'lengths', 'dt')
      for split in splits
  ] or ['x', 'y', 'lengths', 'dt']
  for name in sorted(found.keys() - {*known, 'class_names'}):
    near = errors.suggest(name, ['lengths', 'class_names', *known])
    if near or name.partition('_')[0] in ('x', 'y', 'lengths', 'dt'):
      raise errors.UserValueError(
          f'{path} (data.path) has an array {name}, which is not read.{near} '
          'The splits are train, validation and test.'
      )


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns all arrays of a file.

  Raises:
    UserValueError: If it is no such file, is damaged or holds objects.
  """
  names = ()
  try:
    with np.load(path, allow_pickle=False) as file:
      names = tuple(file.files)
      return {name: file[name] for name in names}
  # NumPy, zipfile and zlib each have their own errors for a file that was cut
  # short, overwritten, or written in another format.
  except Exception as error:
    why = str(error).splitlines()[0].rstrip('.') if str(error) else 'damaged'
    # `np.load` also reads single arrays, which are no context managers.
    if 'pickle' in why or isinstance(error, TypeError):
      why = 'it is no .npz file'
      if names:
        why = 'it holds an array of objects, which is never loaded'
    elif isinstance(error, OSError) and error.strerror:
      why = error.strerror
    raise errors.UserValueError(
        f'{path} (data.path) cannot be read as a .npz file of arrays: {why}.'
    ) from error


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the arrays as a data set, see `arrays.from_arrays`."""
  path = settings.data_file(config, NAME, 'a .npz file with arrays x and y')
  try:
    return arrays.from_arrays(
        **read(path),
        batch_size=shard.batch_size,
        seed=seed,
        task=config.task or None,
        forecast=config.forecast,
        process_index=shard.process_index,
        process_count=shard.process_count,
        buckets=config.buckets,
        name=NAME,
    )
  except errors.UserValueError as error:
    message = str(error)
    if '(data.path)' in message:
      raise
    raise errors.UserValueError(f'{path} (data.path): {message}') from error


def write_fixture(directory: pathlib.Path, config: Any):
  """Writes two classes of noise, see `Definition.write_fixture`."""
  settings.mark_fixture(directory)
  path = settings.fixture_file(directory, config, NAME)
  path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  y = np.arange(80) % 2
  x = rng.normal(size=(80, 12, 3)).astype(np.float32) + y[:, None, None]
  with open(path, 'wb') as file:  # savez would add .npz to a name.
    np.savez(file, x=x, y=y, lengths=rng.integers(6, 13, 80))


DEFINITION = definition.Definition(
    # What `y` holds decides; this is the kind where nothing says otherwise.
    task='classification',
    fields=dict(
        path=fields.Field(
            str, default='',
            help='The file, with the arrays x, y, lengths and dt.',
        ),
        buckets=examples.BUCKETS,
        task=fields.Field(
            str, choices=('', *arrays.TASKS), default='',
            help='The kind of task. If empty, the dtype of y decides.',
        ),
        forecast=fields.Field(
            bool, optional=True,
            help='Whether the targets of steps are later inputs. If None, '
            'they are where a column of y equals a later column of x.',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
