"""Your own series in a CSV file, to be forecast; table.py says how it is read.

`data.targets` names the columns to forecast. Their past is read, and that of
the columns of `data.past` and `data.ahead`. The columns of `data.ahead`, such
as a calendar or a plan, are known for the steps to forecast, too.

A missing number is no target. As an input it becomes the number before it, and
a further input column says where that is so. Rows are taken as equally far
apart, unless `data.irregular` says that layers get `dt`.
"""

import dataclasses
import datetime
import pathlib
from typing import Any

from absl import logging
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.series import table as tables
from rnnzoo.data.series import windows

NAME = 'csv_file'


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the windows of the file, see `windows.dataset`."""
  path = settings.data_file(config, NAME, 'a CSV file')
  return read(path, config, shard, seed, NAME)


def read(
    path: pathlib.Path, config: Any, shard: pipeline.Shard, seed: int, name: str
) -> pipeline.Dataset:
  """Returns the windows of a file as a data set.

  Args:
    path: The file.
    config: Has the fields of `DEFINITION`, apart from `path`.
    shard: The rows of this process.
    seed: Fixes the order of the training windows.
    name: The name of the data set.

  Raises:
    UserError: If the file cannot be read or does not go with the config.
  """
  table = tables.read(path, config.time_column)
  chosen = dict(
      targets=tuple(config.targets) or tuple(
          column for column in table.names
          if column not in (*config.past, *config.ahead)
      ),
      past=tuple(config.past),
      ahead=tuple(config.ahead),
  )
  _check_columns(path, table, chosen)
  columns = {
      role: {
          column: tables.numbers(path, table, column) for column in names
      }
      for role, names in chosen.items()
  }
  try:
    ends = windows.part_ends(len(table.lines), config.parts)
    missing = {
        column: int(np.isnan(values).sum())
        for role in columns.values() for column, values in role.items()
    }
    if any(missing.values()):
      logging.info('%s: missing numbers: %s.', path, ', '.join(
          f'{count} in {column}' for column, count in missing.items() if count
      ))
    series = windows.standardise(**columns, train_rows=ends['train'])
    if config.irregular:
      if not config.time_column:
        raise errors.UserValueError(
            'data.irregular=True needs the times, data.time_column.'
        )
      series = dataclasses.replace(series, steps=table.steps)
    return windows.dataset(
        series, ends, shard, pipeline.check_seed(seed),
        sequence_length=config.sequence_length,
        horizon=config.horizon,
        season=config.season,
        name=name,
    )
  except errors.UserValueError as error:
    raise errors.UserValueError(f'{path}: {error}') from error


def write_fixture(directory: pathlib.Path, config: Any):
  """Writes waves and noise, see `Definition.write_fixture`."""
  settings.mark_fixture(directory)
  path = settings.fixture_file(directory, config, NAME)
  named = [
      name for field in ('targets', 'past', 'ahead')
      for name in settings.field(config, field, ())
  ]
  write_waves(
      path, tuple(dict.fromkeys(named)) or ('load', 'price', 'OT'), 1000,
      settings.field(config, 'time_column', 'date'),
  )


def write_waves(
    path: pathlib.Path, names: tuple[str, ...], rows: int,
    time_column: str = 'date',
):
  """Writes a table of hours: in each column a day's wave, a drift and noise."""
  path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  hours = np.arange(rows)[:, None]
  phase, size = rng.uniform(0, 6, len(names)), rng.uniform(1, 5, len(names))
  values = size * np.sin(2 * np.pi * hours / 24 + phase)
  values += 0.1 * rng.normal(size=values.shape).cumsum(0)
  values += 0.3 * rng.normal(size=values.shape)
  first = datetime.datetime(2016, 7, 1)
  lines = [','.join([time_column, *names] if time_column else names)]
  for hour, row in enumerate(values):
    texts = [f'{value:.3f}' for value in row]
    if time_column:
      texts.insert(0, str(first + datetime.timedelta(hours=hour)))
    lines.append(','.join(texts))
  path.write_text('\n'.join(lines) + '\n')


def _check_columns(path, table, chosen):
  """Raises `UserValueError` if a column is absent or has two roles."""
  roles = {}
  for field, names in chosen.items():
    for name in names:
      tables.check_column(path, field, name, table.names)
      if name in roles:
        raise errors.UserValueError(
            f'{path}: data.{roles[name]} and data.{field} both name column '
            f'{name!r}; name it once.' if roles[name] != field else
            f'{path}: data.{field} names column {name!r} twice.'
        )
      roles[name] = field
  if not chosen['targets']:
    raise errors.UserValueError(
        f'{path}: data.targets must name at least one column; it has '
        f'{", ".join(table.names) or "none"}.'
    )


FIELDS = dict(
    path=fields.Field(str, default='', help='The file.'),
    time_column=fields.Field(
        str, default='date',
        help='The column of the times, which must increase: dates of ISO 8601 '
        'or numbers. If empty, there is none.',
    ),
    irregular=fields.Field(
        bool, default=False,
        help='Whether layers get the length of each step of time, dt, and the '
        'model the times of the steps to forecast. Otherwise rows are taken as '
        'equally far apart.',
    ),
    targets=fields.Field(
        tuple, default=(),
        help='The columns to forecast. If empty, all that no other field '
        'names.',
    ),
    past=fields.Field(
        tuple, default=(),
        help='Further columns to read, which are known up to the present.',
    ),
    ahead=fields.Field(
        tuple, default=(),
        help='Further columns to read, which are known for the steps to '
        'forecast, too.',
    ),
    sequence_length=fields.Field(
        int, low=1, default=336, help='The steps to read: the look-back.'
    ),
    horizon=fields.Field(
        int, low=1, default=96, help='The steps to forecast.'
    ),
    parts=fields.Field(
        tuple, items=float, low=0, default=(0.7, 0.1, 0.2),
        help='The shares of train, validation and test, one after another, or '
        'their numbers of rows.',
    ),
    season=fields.Field(
        int, low=0, default=24,
        help='The period of the forecast that repeats the last one, printed '
        'for comparison. 0 means none, and so does one that is longer than '
        'sequence_length.',
    ),
)
DEFINITION = definition.Definition(
    task='forecasting', fields=FIELDS, load=load, write_fixture=write_fixture
)
