"""CSV files of numbers over time: a header, then one row for each step.

  date,load,temperature
  2016-07-01 00:00:00,5.827,30.531
  2016-07-01 01:00:00,5.693,

A field that is empty, `NA`, `NaN`, `null` or `?` is a missing number. A line of
spaces is no row.
"""

import collections
import csv
import datetime
import math
import pathlib
from typing import Any, NamedTuple

from absl import logging
import numpy as np
from rnnzoo import errors

_MISSING = ('', 'na', 'n/a', '#n/a', 'nan', 'null', 'none', '?')
# Steps of time that differ by less, as a share of the usual one, are equal.
_EQUAL = 1e-3


class Table(NamedTuple):
  """What a file holds.

  Attributes:
    names: The names of all columns but the one of the times.
    times: The times as they are written; empty if no column has them.
    steps: The time of each row since the first one in units of the usual step,
      `[N]` float64: 0, 1, 2 and so on if the rows are equally far apart.
    texts: The other columns by name, one text for each row.
    lines: The line of each row in the file, for messages.
  """

  names: tuple[str, ...]
  times: list[str]
  steps: np.ndarray
  texts: dict[str, list[str]]
  lines: list[int]


def read(path: pathlib.Path, time_column: str) -> Table:
  """Reads a file and checks the order of its rows.

  Args:
    path: The file.
    time_column: The column of the times, which must increase: dates of ISO
      8601, or numbers. If empty, the order of the rows is taken as it is.

  Raises:
    UserError: If the file cannot be read, or lacks the column, or a time is
      wrong; the message names the line.
  """
  header, rows, lines = read_rows(path)
  doubled = sorted({name for name in header if header.count(name) > 1})
  if doubled:
    raise errors.UserValueError(
        f'{path} has several columns {doubled[0]!r}: the names in its first '
        'line must differ.'
    )
  texts = dict(zip(header, map(list, zip(*rows))))
  times, steps = [], np.arange(len(rows), dtype=np.float64)
  if time_column:
    check_column(path, 'time_column', time_column, header)
    times = texts.pop(time_column)
    steps = _steps(path, times, lines)
  return Table(tuple(texts), times, steps, texts, lines)


def check_column(path, field: str, name: str, names):
  """Raises `UserValueError` if a file has no column of this name."""
  if name not in names:
    hint = errors.suggest(name, names)
    if set(name.split(',')) <= set(names):  # One text names several.
      hint = f' Several are written {tuple(name.split(","))}.'
    raise errors.UserValueError(
        f'{path} has no column {name!r} (data.{field}); it has '
        f'{", ".join(names)}.{hint}'
    )


def numbers(path: pathlib.Path, table: Table, name: str) -> np.ndarray:
  """Returns a column as float64 `[N]`, NaN where a number is missing.

  Raises:
    UserValueError: If a field is no finite number; the message names the line.
  """
  column = np.full(len(table.lines), np.nan)
  for row, text in enumerate(table.texts[name]):
    if text.strip().lower() in _MISSING:
      continue
    try:
      column[row] = _number(text)
    except ValueError:
      pass
    if not np.isfinite(column[row]):
      raise errors.UserValueError(
          f'{path}, line {table.lines[row]}: column {name!r} must be finite '
          f'numbers, got {text[:40]!r}. Leave a missing number empty.'
      )
  return column


def read_rows(
    path: pathlib.Path,
) -> tuple[list[str], tuple[list[str], ...], list[int]]:
  """Returns the header, the rows and the line of each row.

  Raises:
    UserError: If the file cannot be read, or a row has too few fields or too
      many.
  """
  try:
    # A file of Excel starts with a byte order mark.
    with open(path, encoding='utf-8-sig', newline='') as file:
      reader = csv.reader(file)
      header = [name.strip() for name in next(reader, [])]
      found = [
          (row, reader.line_num) for row in reader
          if len(row) > 1 or ''.join(row).strip()
      ]
  except OSError as error:
    raise errors.UserError(f'Cannot read {path}: {error.strerror}.') from error
  except (UnicodeDecodeError, csv.Error) as error:
    raise errors.UserValueError(
        f'{path} is no CSV file in UTF-8: {error}.'
    ) from error
  if not found:
    raise errors.UserValueError(
        f'{path} must have a line of names and at least one row.'
    )
  other = [sign for sign in ';\t|' if len(header) == 1 and sign in header[0]]
  if other:
    raise errors.UserValueError(
        f'{path}: commas must separate the fields of a line, got {other[0]!r} '
        'in the first one. Write it anew, with a point in decimal numbers.'
    )
  if _is_data(header):
    raise errors.UserValueError(
        f'{path}: the first line must have the names of the columns, got '
        f'numbers: {",".join(header)[:80]}'
    )
  for row, line in found:
    if len(row) != len(header):
      raise errors.UserValueError(
          f'{path}, line {line}: a row must have as many fields as the first '
          f'line, {len(header)}, got {len(row)}.'
      )
  rows, lines = zip(*found)
  return header, rows, list(lines)


def _is_data(header) -> bool:
  """Whether a first line holds numbers and times, where names should be.

  The numbers 0, 1, 2 and so on are names, which some programs write.
  """
  try:
    for text in header:
      parse_time(text)
  except ValueError:
    return False
  return header != [str(number) for number in range(len(header))]


def _number(text: str) -> float:
  """Returns a number as files have it; Python has underscores in its own."""
  if '_' in text:
    raise ValueError(text)
  return float(text)


def read_times(
    path: pathlib.Path, times: list[str], lines: list[int]
) -> list[float] | list[datetime.datetime]:
  """Returns times as numbers or dates, all of one form.

  Raises:
    UserValueError: If a text is neither a finite number nor a date, or the
      forms differ; the message names the line.
  """
  parsed = []
  for text, line in zip(times, lines):
    try:
      parsed.append(parse_time(text))
    except ValueError as error:
      raise errors.UserValueError(
          f'{path}, line {line}: the time must be a date of ISO 8601, such as '
          f'2016-07-01 00:00:00, or a number, got {text[:40]!r}.'
      ) from error
  if len({_form(time) for time in parsed}) > 1:
    raise errors.UserValueError(
        f'{path}: all times must be of one form: dates with a time zone, dates '
        'without one, or numbers.'
    )
  return parsed


def _steps(path, times, lines) -> np.ndarray:
  """Returns `Table.steps`.

  Raises:
    UserValueError: Unless the times increase.
  """
  parsed: list[Any] = list(read_times(path, times, lines))
  steps = [after - before for before, after in zip(parsed, parsed[1:])]
  nothing = steps[0] - steps[0] if steps else 0
  for number, step in enumerate(steps):
    if not step > nothing:
      raise errors.UserValueError(
          f'{path}, line {lines[number + 1]}: the time {times[number + 1]} is '
          f'not after {times[number]}, the time of the row before. Sort the '
          'rows by time.'
      )
  if not steps:
    return np.zeros(1)
  [(usual, _)] = collections.Counter(steps).most_common(1)
  # Of dates the quotient is exact; of decimal numbers it is not quite.
  since = np.array([(time - parsed[0]) / usual for time in parsed])
  lengths = np.diff(since)
  others = np.abs(lengths - 1) > _EQUAL
  if others.any():
    logging.warning(
        '%s: %d of %d steps of time are not %s long, but %.3g to %.3g times as '
        'long.', path, others.sum(), len(steps), usual, lengths.min(),
        lengths.max(),
    )
  return since


def parse_time(text: str) -> datetime.datetime | float:
  """Returns a finite number or a date; raises `ValueError` for others."""
  try:
    number = _number(text)
  except ValueError:
    return datetime.datetime.fromisoformat(text.strip())
  if not math.isfinite(number):
    raise ValueError(text)
  return number


def _form(time: datetime.datetime | float):
  if not isinstance(time, datetime.datetime):
    return 'number'
  return 'date' if time.utcoffset() is None else 'date with a time zone'
