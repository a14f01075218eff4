"""The `.ts` files of the UEA and UCR archives of time series.

  # A comment.
  @problemName Example
  @timeStamps false
  @dimensions 2
  @classLabel true walking running
  @data
  1.5,2.5,?:0.1,0.2,0.3:walking
  7,8:0.4,0.5:running

Each line after `@data` is a series: the numbers of its channels, between
colons, and its label. `?` is a missing number. Names in the header may be in
upper or lower case.
"""

import pathlib
from typing import NamedTuple

import numpy as np
from rnnzoo import errors

_DATA = '@data'


class Problem(NamedTuple):
  """What a file holds.

  Attributes:
    series: `N` arrays `[T_n, D]` float64, all finite.
    labels: The class of each series.
    class_names: The names of all classes, in the order of the header.
  """

  series: list[np.ndarray]
  labels: list[str]
  class_names: tuple[str, ...]


def read(path: pathlib.Path) -> Problem:
  """Reads a file of labelled series.

  Steps at the end that have no number in any channel are cut off: some files
  fill up short series with them. Any other missing number is the one before it
  in its channel; at the start it is the next one, and 0 in a channel without
  numbers.

  Args:
    path: The file.

  Raises:
    UserError: If it cannot be read; the message names the line.
  """
  try:
    # Comments are in several encodings.
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
  except OSError as error:
    raise errors.UserError(f'Cannot read {path}: {error.strerror}.') from error
  header = _header(path, lines)
  names = tuple(header['classlabel'].split()[1:])
  series, labels = [], []
  in_header = True
  for number, line in enumerate(lines, 1):
    if in_header or not line.strip() or line.startswith('#'):
      in_header = in_header and line.strip().lower() != _DATA
      continue
    try:
      *channels, label = line.split(':')
      series.append(_filled(_array(channels, header.get('dimensions'))))
      labels.append(_label(label, names))
    except ValueError as error:
      raise errors.UserValueError(f'{path}, line {number}: {error}.') from error
    if series[-1].shape[1] != series[0].shape[1]:
      raise errors.UserValueError(
          f'{path}, line {number}: a series of {series[-1].shape[1]} channels; '
          f'the first one has {series[0].shape[1]}.'
      )
  if not series:
    raise errors.UserValueError(f'{path} has no series after @data.')
  return Problem(series, labels, names or tuple(sorted(set(labels))))


def _header(path, lines) -> dict[str, str]:
  """Returns the lines before the data by name, checked."""
  header = {}
  for line in lines:
    name, _, value = line.strip().partition(' ')
    if line.strip().lower() == _DATA:
      break
    if name.startswith('@'):
      header[name[1:].lower()] = value.strip()
  else:
    raise errors.UserValueError(
        f'{path} is no .ts file: it has no line @data.'
    )
  if header.get('timestamps', 'false').lower() == 'true':
    raise errors.UserValueError(
        f'{path} has time stamps (@timeStamps), which are not read. Convert it '
        'to a .npz file with x, y and dt, and use data.name=npz_file.'
    )
  if not header.get('classlabel', '').lower().startswith('true'):
    raise errors.UserValueError(
        f'{path} has no classes: @classLabel must be true, followed by the '
        f'names of the classes, got {header.get("classlabel", "")!r}.'
    )
  return header


def _array(channels: list[str], dimensions: str | None) -> np.ndarray:
  """Returns `[T, D]` float64, NaN for what is missing."""
  if dimensions and len(channels) != int(dimensions):
    raise ValueError(
        f'{len(channels)} channels and a label expected to be {dimensions} '
        'channels and a label'
    )
  rows = [
      [np.nan if u.strip() == '?' else float(u) for u in channel.split(',')]
      for channel in channels
  ]
  if not rows:
    raise ValueError('no channels')
  values = np.full((max(map(len, rows)), len(rows)), np.nan)
  for column, row in enumerate(rows):
    values[: len(row), column] = row
  if np.isinf(values).any():
    raise ValueError('an infinite number')
  return values


def _label(text: str, names: tuple[str, ...]) -> str:
  label = text.strip()
  if not label or names and label not in names:
    raise ValueError(
        f'the label must be one of {", ".join(names) or "the classes"}, got '
        f'{label[:40]!r}'
    )
  return label


def _filled(values: np.ndarray) -> np.ndarray:
  """Returns `[T, D]` without NaN, see `read`."""
  known = ~np.isnan(values)
  if known.all():
    return values
  steps = np.flatnonzero(known.any(1))
  if not len(steps):
    raise ValueError('a series without numbers')
  values, known = values[: steps[-1] + 1], known[: steps[-1] + 1]
  step = np.arange(len(values))[:, None]
  before = np.maximum.accumulate(np.where(known, step, -1))
  source = np.where(before < 0, known.argmax(0), before)
  return np.nan_to_num(np.take_along_axis(values, source, 0), nan=0.0)
