"""Windows of one long series: some steps to read, the next ones to forecast.

All windows are cut from one array when a batch is made, so a series takes its
own size in memory, whatever the number and the length of its windows.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo.data import arrays
from rnnzoo.data import pipeline

# The squares of such numbers and their sums are finite in float32.
_LARGEST = 1e12


@dataclasses.dataclass(frozen=True)
class Series:
  """Columns over time, standardised and without gaps, see `standardise`.

  Attributes:
    values: `[N, D]` float32: `C` columns to forecast, columns of the past,
      `F` columns that are known ahead, and one indicator for each column with
      gaps.
    known: Which numbers to forecast were measured, `[N, C]` bool; `None` if
      all were.
    names: The names of the `C` columns.
    offset: The mean that was subtracted from them, `[C]`.
    scale: The deviation that they were divided by, `[C]`.
    ahead: The places of the `F` columns in `values`.
    steps: The time of each row, `[N]` float64, in units of the usual step;
      `None` if the rows are equally far apart.
  """

  values: np.ndarray
  known: np.ndarray | None
  names: tuple[str, ...]
  offset: np.ndarray
  scale: np.ndarray
  ahead: slice
  steps: np.ndarray | None = None

  @property
  def targets(self) -> np.ndarray:
    """The columns to forecast, `[N, C]`."""
    return self.values[:, : len(self.names)]


def standardise(
    targets: Mapping[str, np.ndarray],
    past: Mapping[str, np.ndarray],
    ahead: Mapping[str, np.ndarray],
    train_rows: int,
) -> Series:
  """Returns columns as a `Series`.

  Each column loses its mean over the train part, and is divided by its
  deviation there (by 1 if all numbers are equal). A missing number becomes the
  one before it, and 0, the mean, at the start; an indicator column is 1 where
  that is so.

  >>> gaps = np.array([1.0, 3.0, np.nan, 7.0])
  >>> standardise(dict(load=gaps), {}, {}, 2).values.T
  array([[-1.,  1.,  1.,  5.],
         [ 0.,  0.,  1.,  0.]], dtype=float32)

  Args:
    targets: The columns to forecast by name, `[N]` float64, NaN for a gap.
    past: Columns that are known up to the present only.
    ahead: Columns that are known over the horizon, too.
    train_rows: The number of rows of the train part.

  Raises:
    UserValueError: If a column has no number in the train part, or numbers that
      float32 cannot hold when they are standardised.
  """
  names = *targets, *past, *ahead
  raw = np.stack([*targets.values(), *past.values(), *ahead.values()], axis=1)
  known = np.isfinite(raw)
  train = np.where(known, raw, np.nan)[:train_rows]
  for name, column in zip(names, known[:train_rows].T):
    if not column.any():
      raise errors.UserValueError(
          f'Column {name!r} has no number in the train part, the first '
          f'{train_rows} rows.'
      )
  with np.errstate(over='ignore', invalid='ignore'):
    mean, deviation = np.nanmean(train, 0), np.nanstd(train, 0)
    # Rounding gives equal numbers a deviation, which nothing may be divided by.
    varies = np.nanmax(train, 0) > np.nanmin(train, 0)
    scale = np.where(varies & (deviation > 0), deviation, 1)
    values = np.where(known, (raw - mean) / scale, 0)
    fits = (np.isfinite(mean) & np.isfinite(scale)) & (
        np.abs(values) < _LARGEST
    ).all(0)
  for name, good in zip(names, fits):
    if not good:
      raise errors.UserValueError(
          f'Column {name!r} must have numbers within {_LARGEST:.0e} deviations '
          'of the mean of the train part. Rescale it, or leave the others '
          'empty.'
      )
  rows = np.arange(len(raw))[:, None]
  latest = np.maximum.accumulate(np.where(known, rows, 0), axis=0)
  values = np.take_along_axis(values, latest, axis=0)
  gaps = ~known[:, ~known.all(0)]
  number = len(targets)
  first = number + len(past)
  return Series(
      np.concatenate([values, gaps], axis=1).astype(np.float32),
      None if known[:, :number].all() else known[:, :number],
      tuple(targets), mean[:number], scale[:number],
      slice(first, first + len(ahead)),
  )


def dataset(
    series: Series,
    ends: Mapping[str, int],
    shard: pipeline.Shard,
    seed: int,
    *,
    sequence_length: int,
    horizon: int,
    season: int,
    **attributes: Any,
) -> pipeline.Dataset:
  """Returns all windows of a series as a `Dataset`.

  A window belongs to the part that holds all of the steps to forecast. The
  steps to read may lie in the part before. If the rows are not equally far
  apart, batches have `dt`, and one more number that is known of each step to
  forecast: the time since the last step read, over that of `H` usual steps.

  Args:
    series: The series.
    ends: For train, validation and test, in this order, the row after the last.
    shard: The rows of this process.
    seed: Fixes the order of the training windows.
    sequence_length: `L`, the steps to read.
    horizon: `H`, the steps to forecast.
    season: The period of `seasonal_naive_mse`; 0 means none.
    **attributes: The other attributes of the `Dataset`.

  Raises:
    UserValueError: If there is a part without a window, or without a number to
      forecast.
  """
  starts = first_rows(ends, sequence_length, horizon)
  _check_known(series, starts, sequence_length, horizon)
  reads, forecasts = np.arange(sequence_length), np.arange(horizon)
  future_features = series.ahead.stop - series.ahead.start
  future_features += series.steps is not None

  def batch(split, training, numbers):
    first, count = starts[split]
    rows = first + np.minimum(numbers, count - 1)[:, None]
    later = rows + sequence_length + forecasts
    found = dict(
        inputs=series.values[rows + reads], targets=series.targets[later]
    )
    future = [series.values[:, series.ahead][later]]
    if series.steps is not None:
      # Of the first row the time before it is not known: the usual step.
      lengths = np.diff(series.steps, prepend=series.steps[0] - 1)
      found['dt'] = lengths[rows + reads].astype(np.float32)
      since = series.steps[later] - series.steps[later[:, :1] - 1]
      future.append(since[..., None].astype(np.float32) / horizon)
    if future_features:
      found['future'] = np.concatenate(future, axis=-1)
    if series.known is not None:
      found['mask'] = series.known[later]
    if training:
      return found
    counted = numbers < count
    if 'mask' not in found:
      return found | dict(mask=counted)
    return found | dict(mask=found['mask'] & counted[:, None, None])

  windows = {name: count for name, (_, count) in starts.items()}
  return pipeline.Dataset(
      task='forecasting',
      batch_size=shard.batch_size,
      sequence_length=sequence_length,
      horizon=horizon,
      in_features=series.values.shape[1],
      future_features=future_features,
      irregular=series.steps is not None,
      out_features=len(series.names),
      target_names=series.names,
      target_offset=tuple(series.offset.tolist()),
      target_scale=tuple(series.scale.tolist()),
      train=shard.shuffled(windows['train'], seed).map(
          functools.partial(batch, 'train', True)
      ),
      evaluation={
          name: shard.evaluate(count).map(
              functools.partial(batch, name, False)
          )
          for name, count in windows.items() if name != 'train'
      },
      baselines=functools.partial(
          baselines, series, starts['test'], sequence_length, horizon, season
      ),
      source=dict(
          examples=windows,
          sha256=_digest(series),
      ),
      **attributes,
  )


def _digest(series) -> str:
  found = hashlib.sha256(series.values.tobytes())
  if series.steps is not None:
    found.update(series.steps.tobytes())
  return found.hexdigest()


def _check_known(series, starts, sequence_length, horizon):
  """Raises `UserValueError` if all numbers to forecast of a part are gaps."""
  for name, (first, count) in starts.items():
    first += sequence_length
    rows = slice(first, first + count + horizon - 1)
    if series.known is not None and not series.known[rows].any():
      raise errors.UserValueError(
          f'The {name} part must have a number to forecast, but of '
          f'{", ".join(series.names)} all are missing there.'
      )


def part_ends(rows: int, parts) -> dict[str, int]:
  """Returns the row after the last one of train, validation and test.

  >>> part_ends(1000, (0.7, 0.1, 0.2))
  {'train': 700, 'validation': 800, 'test': 1000}
  >>> part_ends(1000, (400, 100, 100))
  {'train': 400, 'validation': 500, 'test': 600}

  Args:
    rows: The rows of the series.
    parts: Three shares that add up to 1, or three numbers of rows.

  Raises:
    UserValueError: If they are something else, or there are too few rows.
  """
  shares = len(parts) == 3 and abs(sum(parts) - 1) < 1e-6
  counts = len(parts) == 3 and all(part == int(part) >= 1 for part in parts)
  if not (shares and min(parts) > 0 or counts):
    raise errors.UserValueError(
        'data.parts must be three positive shares that add up to 1 (train, '
        f'validation, test), or three numbers of rows, got {parts}.'
    )
  ends = np.cumsum(parts)
  ends = np.round(ends * rows if shares else ends).astype(int).tolist()
  if ends[-1] > rows:
    raise errors.UserValueError(
        f'data.parts are {ends[-1]} rows in all, but there are {rows}.'
    )
  return dict(zip(arrays.SPLITS, ends))


def first_rows(
    ends: Mapping[str, int], sequence_length: int, horizon: int
) -> dict[str, tuple[int, int]]:
  """Returns the first row and the number of the windows of each part.

  >>> first_rows(dict(train=10, validation=14, test=18), 4, 2)
  {'train': (0, 5), 'validation': (6, 3), 'test': (10, 3)}

  Raises:
    UserValueError: If a part has no window.
  """
  starts, begin = {}, 0
  for name, end in ends.items():
    first = max(begin - sequence_length, 0)
    count = end - first - sequence_length - horizon + 1
    if count < 1:
      raise errors.UserValueError(
          f'The {name} part of {end - begin} rows has no window: '
          f'data.sequence_length {sequence_length} and data.horizon {horizon} '
          f'need {end - begin + 1 - count} rows in it. Make one of them '
          'smaller, or change data.parts.'
      )
    starts[name] = first, count
    begin = end
  return starts


def baselines(
    series: Series, windows: tuple[int, int], sequence_length: int,
    horizon: int, season: int,
) -> dict[str, float]:
  """Returns the errors of repeating what was seen last.

  `naive_mse` and `naive_mae` are those of the last step, `seasonal_naive_mse`
  and `seasonal_naive_mae` those of the last `season` steps.

  Args:
    series: The series.
    windows: The first row and the number of the windows.
    sequence_length: The steps before the first one to forecast.
    horizon: The steps to forecast.
    season: The number of steps to repeat; 0 means none.
  """
  first, count = windows
  now = first + sequence_length - 1 + np.arange(count)  # The last step read.
  periods = dict(naive=1)
  if 0 < season <= sequence_length:
    periods['seasonal_naive'] = season
  found = {}
  for name, period in periods.items():
    squared = absolute = weight = 0.0
    for step in range(horizon):
      truth = now + 1 + step
      guess = now + 1 + step % period - period
      error = series.targets[truth] - series.targets[guess]
      counts = (
          np.ones(error.shape, bool) if series.known is None
          else series.known[truth]
      )
      error = error[counts].astype(np.float64)
      squared += np.sum(error**2)
      absolute += np.abs(error).sum()
      weight += error.size
    found[f'{name}_mse'] = float(squared / max(weight, 1))
    found[f'{name}_mae'] = float(absolute / max(weight, 1))
  return found
